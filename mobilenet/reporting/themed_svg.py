"""SVG pictures by matplotlib that are light or dark, as their reader prefers.

Colors are those of a light page; a style sheet in the file replaces them on dark ones. A program
that ignores it shows the light picture. Text stays text, in the font of the reader's system.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Color by name: on a light page, on a dark page. Series are of the palette of Okabe and Ito, which
# can be told apart with any color vision.
COLORS = {
    "ink": ("#1c2128", "#e6e9ed"),
    "muted": ("#66707c", "#9ba5b1"),
    "grid": ("#e4e7eb", "#323942"),
    "soft": ("#aab2bc", "#66707d"),
    "accent": ("#0072b2", "#56b4e9"),
    "orange": ("#d98a00", "#e69f00"),
    "green": ("#00805f", "#2cc69d"),
    "red": ("#c14f00", "#ff8640"),
    "purple": ("#b8608f", "#d98fba"),
    "yellow": ("#a08c00", "#f0e442"),
}
INK, MUTED, GRID, SOFT, ACCENT, RED = (
    COLORS[name][0] for name in ("ink", "muted", "grid", "soft", "accent", "red")
)
SERIES = tuple(
    COLORS[name][0] for name in ("accent", "orange", "green", "purple", "red", "yellow", "ink")
)
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mobilenet",
    "text.parse_math": False,  # names of classes may contain dollar signs
    "font.size": 12.5,
    "axes.titlesize": 13.5,
    "axes.labelsize": 12,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        name: of its file, without suffix.
        text: what it shows, for readers who cannot see it.
        svg: the file.
        width: in pixels.
        caption: below it, where there are many.
    """

    name: str
    text: str
    svg: str
    width: int
    caption: str = ""

    @property
    def uri(self) -> str:
        """The file as a data URI."""
        return data_uri("image/svg+xml", self.svg.encode())


def data_uri(kind: str, content: bytes) -> str:
    """A file as a data URI.

    Args:
        kind: its media type.
        content: of the file.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


class Canvas:
    """A figure in the style of all pictures.

    `with Canvas("loss", "Loss by epoch") as canvas:` draws on `canvas.axes`; afterwards
    `canvas.picture` is the picture.

    Args:
        name: of the picture.
        text: what it shows.
        width, height: in pixels.
        title: at the top left.
        caption: see `Picture`.
    """

    def __init__(
        self,
        name: str,
        text: str,
        width: int = 440,
        height: int = 280,
        title: str = "",
        caption: str = "",
    ) -> None:
        self.name, self.text, self.title, self.caption = name, text, title, caption
        self.size = (width, height)
        self._picture: Picture | None = None

    def __enter__(self) -> Canvas:
        import matplotlib
        from matplotlib.figure import Figure

        self._settings = matplotlib.rc_context(_SETTINGS)  # of the figure; pyplot is not used
        self._settings.__enter__()
        inches = (self.size[0] / 72, self.size[1] / 72)
        self.figure: Figure = Figure(figsize=inches, dpi=72, layout="constrained")
        self.axes: Axes = self.figure.subplots()
        if self.title:
            style = {"ha": "left", "fontsize": 13.5, "fontweight": "bold"}
            self.figure.suptitle(self.title, x=0.008, **style)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                content = io.StringIO()
                self.figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
                svg = _themed(content.getvalue())
                self._picture = Picture(self.name, self.text, svg, self.size[0], self.caption)
        finally:
            self._settings.__exit__(None, None, None)

    @property
    def picture(self) -> Picture:
        assert self._picture is not None
        return self._picture


def _themed(svg: str) -> str:
    """An SVG file of matplotlib's with the colors of dark pages and the font of the system."""
    svg = re.sub(r"(font(?:-family|: [^'\";]*?[\d.]+px):?) [^;\"]+", rf"\1 {_FONT}", svg)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, count=1, flags=re.DOTALL)
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark} !important}}'
        for light, dark in COLORS.values()
        for what in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return svg.replace("</defs>", f"</defs>\n {style}", 1)
