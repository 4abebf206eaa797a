"""From a program to a module that runs."""
