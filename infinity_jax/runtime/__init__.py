"""The surroundings of a program: processes, devices, signals, files and downloads."""
