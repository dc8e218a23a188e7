"""Processes, devices and signals around a program."""
