"""The page itself: what is on it, and what happens when its buttons are pressed."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ddim_ode.conditions import NO_CLASS
from ddim_ode.console import one_line, say
from ddim_ode.page.work import Clock, Desk, Wishes
from ddim_ode.session.options import STEP_SOLVER_NAMES
from ddim_ode.session.request import DEFAULT_STRENGTH
from ddim_ode.session.session import Session
from ddim_ode.spacings import GRIDS

_USUAL = "usual"
_LARGEST_FILE = "20mb"
# Seconds, for which files are kept.
_KEPT = 3600
_FIRST_STEPS, _MOST_STEPS = 10, 200
_MOST_BETWEEN = 17
# Of pictures, in pixels of the page.
_HEIGHT = 300
_SHOWN = ("As the model sees it", "Its latent, from -4 to 4", "What comes back")
# Errors of inputs, of solvers and of machines: whatever the command line says in one line.
_ERRORS = (ValueError, OSError, RuntimeError, MemoryError)


def serve(opener: Callable[..., Session], *, host: str, port: int, seconds: float) -> None:
    """Show the page of a session at ``http://host:port`` until it is interrupted.

    ``opener``   makes the session, given what listens to its progress.
    ``seconds``  a request may take.

    Raises:
        ValueError: if gradio is not installed.
        OSError: if the port is taken.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder is removed
    with TemporaryDirectory(prefix=f"ddim-ode-page-{os.getpid()}-", ignore_cleanup_errors=True) as folder:
        # Read when gradio is imported, and matplotlib by it.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "MPLCONFIGDIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        gradio = _gradio()
        clock = Clock(seconds)
        desk = Desk(opener(progress=clock), clock, Path(folder))
        blocks = page(desk)
        say(f"http://{host}:{port} shows the page; Ctrl-C ends it")
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            max_file_size=_LARGEST_FILE,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            footer_links=[],
            ssr_mode=False,
        )


def _gradio() -> Any:
    try:
        import gradio
        import pandas  # noqa: F401 - whose tables gradio draws
    except ImportError:
        raise ValueError(
            "the page needs gradio; install the extra [page], or: python -m pip install gradio pandas"
        ) from None
    return gradio


def page(desk: Desk) -> Any:
    """The page over a ``desk``, as gradio's ``Blocks``, not yet served."""
    gr = _gradio()
    model = desk.session.model
    with gr.Blocks(title="ddim-ode", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as blocks:
        gr.Markdown(f"# ddim-ode\nPictures, their latents and what lies between, with the model '{model.name}'.")
        with gr.Accordion("Solver, and what the pictures show", open=False):
            with gr.Row():
                solver = gr.Dropdown(STEP_SOLVER_NAMES, value=STEP_SOLVER_NAMES[0], label="Solver")
                grid = gr.Dropdown([_USUAL, *sorted(GRIDS)], value=_USUAL, label="Grid")
                guidance = gr.Slider(0, 10, value=1, step=0.5, label="Guidance", visible=_can_be_asked(desk))
            asked = _what(gr, desk, "What the pictures show")
        steps = gr.Slider(1, _MOST_STEPS, value=_FIRST_STEPS, step=1, label="Steps")
        wishes = (solver, grid, steps, asked, guidance)
        with gr.Tab("There and back"):
            _there_and_back(gr, desk, wishes)
        with gr.Tab("Between two"):
            _between(gr, desk, wishes)
        if _can_be_asked(desk):
            with gr.Tab("Edit"):
                _edit(gr, desk, wishes)
    return blocks


def _can_be_asked(desk: Desk) -> bool:
    return bool(desk.session.model.classes) or desk.session.model.asked is not None


def _what(gr: Any, desk: Desk, label: str) -> Any:
    """Where a class is chosen, or a prompt is typed."""
    if desk.session.model.asked is not None:
        return gr.Textbox(label=label, placeholder="a prompt")
    return gr.Dropdown(
        [NO_CLASS, *desk.session.model.classes], value=NO_CLASS, label=label, visible=_can_be_asked(desk)
    )


def _wishes(desk: Desk, solver: str, grid: str, steps: float, asked: str, guidance: float) -> Wishes:
    known = None if desk.session.model.asked is None and asked == NO_CLASS else asked
    return Wishes(solver, None if grid == _USUAL else grid, int(steps), known, guidance)


def _there_and_back(gr: Any, desk: Desk, wishes: Sequence[Any]) -> None:
    import pandas as pd

    with gr.Row():
        picture = _picture(gr, "Picture")
        with gr.Column():
            go = gr.Button("Encode and decode", variant="primary")
            draw = gr.Button("Error against steps")
            report = gr.Textbox(label="What was lost", lines=3, interactive=False)
            files = gr.Files(label="Latent and decoded picture", interactive=False)
    with gr.Row():
        shown = [_result(gr, label) for label in _SHOWN]
    with gr.Row():
        values = gr.LinePlot(x="x_T", y="part of all", color="of", title="Values of the latent")
        curve = gr.LinePlot(x="steps each way", y="PSNR in dB", title="What comes back")

    def encode(path: str | None, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        found = desk.there_and_back(_path(path), _wishes(desk, *chosen))
        rows = [
            (value, part, of)
            for value, own, normal in found.bins
            for part, of in ((own, "the latent"), (normal, "normal noise"))
        ]
        table = pd.DataFrame(rows, columns=["x_T", "part of all", "of"])
        yield found.seen, found.latent, found.back, found.report, [str(file) for file in found.files], table

    def errors(path: str | None, *chosen: Any) -> Iterator[Any]:
        points = list[tuple[int, float]]()
        for point in desk.curve(_path(path), _wishes(desk, *chosen)):
            points.append(point)
            yield pd.DataFrame(points, columns=["steps each way", "PSNR in dB"])

    _when(go, gr, desk, encode, [picture, *wishes], [*shown, report, files, values])
    _when(draw, gr, desk, errors, [picture, *wishes], [curve], progress="hidden")


def _between(gr: Any, desk: Desk, wishes: Sequence[Any]) -> None:
    with gr.Row():
        pictures = [_picture(gr, label) for label in ("One picture", "Another picture")]
    with gr.Row():
        count = gr.Slider(3, _MOST_BETWEEN, value=9, step=1, label="Pictures in all")
        go = gr.Button("Go from one to the other", variant="primary")
    frames = gr.State([])
    place = gr.Slider(0, 1, value=0, label="From one to the other")
    shown = _result(gr, "Between")
    report = gr.Textbox(label="What was lost", lines=2, interactive=False)
    file = gr.File(label="All of them", interactive=False)

    def walk(one: str | None, other: str | None, count: float, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        images, line, path = desk.between([_path(one), _path(other)], _wishes(desk, *chosen), int(count))
        yield images, 0, images[0], line, str(path)

    def show(images: Sequence[Any], place: float) -> Any:
        return images[round(place * (len(images) - 1))] if images else None

    _when(go, gr, desk, walk, [*pictures, count, *wishes], [frames, place, shown, report, file])
    place.change(show, [frames, place], shown, show_progress="hidden", api_visibility="private")


def _edit(gr: Any, desk: Desk, wishes: Sequence[Any]) -> None:
    with gr.Row():
        picture = _picture(gr, "Picture to edit")
        with gr.Column():
            to = _what(gr, desk, "What it should show")
            strength = gr.Slider(0.05, 1, value=DEFAULT_STRENGTH, step=0.05, label="Strength")
            go = gr.Button("Edit", variant="primary")
            report = gr.Textbox(label="What was lost", lines=2, interactive=False)
    strip = _result(gr, "The picture, what comes back, the edit")
    file = gr.File(label="The strip", interactive=False)

    def edit(path: str | None, to: str, strength: float, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        wished = _wishes(desk, *chosen)
        made, line = desk.edited(_path(path), to, strength, wished)
        yield str(made), line, str(made)

    _when(go, gr, desk, edit, [picture, to, strength, *wishes], [strip, report, file])


def _picture(gr: Any, label: str) -> Any:
    """Where a picture is dropped, which stays as it is: without a mode gradio converts nothing."""
    place = label.lower().replace(" ", "-")
    return gr.Image(
        type="filepath", sources=["upload", "clipboard"], label=label, height=_HEIGHT, elem_id=place, image_mode=None
    )


def _result(gr: Any, label: str) -> Any:
    """A picture that is shown; what may be done with it is not to post it elsewhere."""
    buttons = ["fullscreen", "download"]
    return gr.Image(label=label, format="png", interactive=False, height=_HEIGHT, buttons=buttons)


def _path(path: str | None) -> Path:
    if path is None:
        raise ValueError("there is no picture yet; drop one, or click to choose a file")
    return Path(path)


def _when(
    button: Any,
    gr: Any,
    desk: Desk,
    work: Callable[..., Iterator[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    progress: str = "full",
) -> None:
    """Let ``button`` begin ``work``, one at a time in all windows; errors and warnings are sentences on the page."""
    bar = gr.Progress()

    def event(*values: Any, told: Any = bar) -> Iterator[Any]:
        desk.clock.start(lambda done: told((done.nfe, done.total) if done.total else 0, desc=done.label))
        said, failure, results = set[str](), None, work(*values)
        try:
            while (result := _next(results, said)) is not None:
                yield result
        except _ERRORS as error:
            failure = gr.Error(one_line(error), print_exception=False)
        for sentence in sorted(said):
            gr.Warning(sentence)
        if failure:
            raise failure

    button.click(
        event,
        list(inputs),
        list(outputs),
        show_progress=progress,
        concurrency_limit=1,
        concurrency_id="model",
        api_visibility="private",
    )


def _next(results: Iterator[Any], said: set[str]) -> Any:
    """The next of the ``results``, or None; what it warns of is ``said``."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = partial(_collect, said)
        return next(results, None)


def _collect(said: set[str], message: Warning | str, category: type[Warning], *place: Any) -> None:
    if issubclass(category, UserWarning):
        said.add(str(message))
