"""`smoe bench compare`: several servers under the same load, in turns."""
