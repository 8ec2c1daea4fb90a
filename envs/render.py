"""Offscreen pictures of MuJoCo scenes.

MuJoCo chooses its OpenGL backend when it is imported, so every family calls `choose_backend` before that.  A machine
without one can still simulate; only asking for a picture fails, and says what to install.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import os
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from core.types import Array

_OFF = ("disable", "disabled", "off", "false", "0")
_OTHERS = ("enable", "enabled", "on", "true", "1", "glfw", "glx", "wgl", "cgl")  # that MuJoCo knows besides
_LIBRARIES = {"egl": ("libEGL.so.1",), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")}
_INSTALL = (
    "install EGL (Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri) or OSMesa "
    "(apt-get install libosmesa6), or set MUJOCO_GL to a backend that works here"
)
_open: weakref.WeakSet = weakref.WeakSet()


class RenderError(RuntimeError):
    """No picture can be made here; the message says what to install."""


@functools.cache
def choose_backend() -> str:
    """Set MUJOCO_GL, unless it is set: EGL if its library is there, else OSMesa, else a display, else nothing.

    Returns: the backend's name, "" when there is none.
    Raises: RenderError for a variable with which MuJoCo cannot even be imported.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not chosen and sys.platform != "linux":
        return "native"
    if not chosen:
        there = [backend for backend, libraries in _LIBRARIES.items() if any(map(_loads, libraries))]
        chosen = (*there, "glfw" if os.environ.get("DISPLAY") else "disable")[0]
        os.environ["MUJOCO_GL"] = chosen
    elif chosen not in (*_OFF, *_OTHERS, *_LIBRARIES):
        raise RenderError(f"MUJOCO_GL is '{chosen}', which MuJoCo does not know; unset it, or set it to egl or osmesa")
    elif chosen in _LIBRARIES and not any(map(_loads, _LIBRARIES[chosen])):
        raise RenderError(f"MUJOCO_GL is '{chosen}', but its library is not there: {_INSTALL}")
    return "" if chosen in _OFF else chosen


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@functools.cache
def _trouble(backend: str) -> Exception | None:
    """Give MuJoCo the backend, also if it was imported before one was chosen, and see that it can draw.

    Without a display GLFW only warns, and MuJoCo fails when it is to draw; trying that again would abort the process.
    """
    try:
        import mujoco
        from mujoco import gl_context

        if backend in ("egl", "osmesa"):
            gl_context.GLContext = importlib.import_module(f"mujoco.{backend}").GLContext
        context = gl_context.GLContext(8, 8)
        try:
            context.make_current()
            mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_50).free()
        finally:
            context.free()
    except Exception as error:  # bindings raise what they like: ImportError, AttributeError, EGLError, ...
        return error
    return None


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Whatever fails inside is a RenderError that says what to install."""
    backend = choose_backend()
    if not backend:
        raise RenderError(f"no OpenGL backend was found to render with: {_INSTALL}")
    try:
        if error := _trouble(backend):
            raise error
        yield
    except Exception as error:
        raise RenderError(f"rendering through {backend} failed ({error!r}): {_INSTALL}") from error


def keep(renderer: Any) -> Any:
    """Close a `mujoco.Renderer` at exit at the latest, before the backend's own exit hook takes its display away."""
    if not _open:
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # after the backend's hook was registered, so that it runs before
    _open.add(renderer)
    return renderer


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()


class Studio:
    """Square pictures of one model, with a renderer for each size that was asked for."""

    def __init__(self, model: Any):
        self._model, self._renderers = model, {}

    def frame(self, data: Any, camera: Any, size: int) -> Array:
        """uint8[size, size, 3], first row at the top.

        A fixed camera that hangs upside down (its up axis points down in the world, as those in Meta-World's
        corners do) gives a picture turned by 180 degrees, which is turned back here.

        Args: camera: a name in the model, or an `MjvCamera`.
        Raises: RenderError; ValueError for a size below 1.
        """
        if size < 1:
            raise ValueError(f"a picture of {size} x {size} pixels cannot be made")
        renderer = self._renderers.get(size) or self._add(size)
        renderer.update_scene(data, camera=camera)
        picture = renderer.render()
        hangs = isinstance(camera, str) and data.camera(camera).xmat.reshape(3, 3)[2, 1] < 0
        return np.ascontiguousarray(picture[::-1, ::-1]) if hangs else picture

    def _add(self, size: int) -> Any:
        with explained():
            import mujoco

            buffer = self._model.vis.global_
            buffer.offwidth, buffer.offheight = max(buffer.offwidth, size), max(buffer.offheight, size)
            self._renderers[size] = keep(mujoco.Renderer(self._model, size, size))
        return self._renderers[size]

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}


class PixelSim:
    """An `envs.host.Sim` whose state is its own rendering, uint8[size, size, 3]."""

    def __init__(self, sim: Any, size: int):
        self._sim, self._size = sim, size
        self.spec = sim.spec._replace(obs_shape=(size, size, 3))
        self.render, self.close = sim.render, sim.close

    def reset(self, seed, task):
        _, goal = self._sim.reset(seed, task)
        return self._sim.render(self._size), goal

    def step(self, action):
        _, reward, terminated, success = self._sim.step(action)
        return self._sim.render(self._size), reward, terminated, success
