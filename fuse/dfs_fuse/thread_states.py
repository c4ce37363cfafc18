"""Keeps what Python has of each of libfuse's threads, from one call to the next.

Python makes its state of a foreign thread when that calls in, and deletes it when the call returns:
a quarter of the processor time of a request that is answered from memory. So each thread holds on
to its state, and deletes it when it ends.
"""

import ctypes
import threading


class ThreadStates:
    """Owned by the driver on libfuse 2. Must live for as long as its threads do."""

    def __init__(self) -> None:
        self._kept = threading.local()
        python = ctypes.pythonapi
        self._ensure = python.PyGILState_Ensure
        self._state = python.PyThreadState_Get
        self._state.restype = ctypes.c_void_p
        clear, delete = python.PyThreadState_Clear, python.PyThreadState_Delete
        clear.argtypes = delete.argtypes = (ctypes.c_void_p,)
        libc = ctypes.CDLL(None)
        self._set = libc.pthread_setspecific
        self._set.argtypes = (ctypes.c_uint, ctypes.c_void_p)

        def end(state: int) -> None:
            # Python has forgotten by now that the thread has one, and calls this with another.
            clear(state)
            delete(state)

        self._end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(end)
        key = ctypes.c_uint()
        if libc.pthread_key_create(ctypes.byref(key), self._end):
            raise OSError("libfuse's threads cannot be told of their end: no pthread key is left")
        self._key = key.value

    def keep(self) -> None:
        """The calling thread, which is one of libfuse's, keeps its state. Quick but for once."""
        if not hasattr(self._kept, "until_its_end"):
            self._kept.until_its_end = True
            if not self._set(self._key, self._state()):
                self._ensure()
