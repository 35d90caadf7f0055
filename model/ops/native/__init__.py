"""The CPU backend: calls the C++ library of model/native through ctypes."""
