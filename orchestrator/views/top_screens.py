"""The two dialogues of `top`: a question before anything is changed, and the list of keys."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

_BOX = """
    align: center middle;
    & > Vertical {
        width: auto; max-width: 90%; height: auto;
        padding: 1 3; border: round $primary; background: $surface;
    }
    & Static { width: auto; max-width: 100%; }
"""


class Confirm(ModalScreen[bool]):
    """Asks one question; dismissed with True only by `y`."""

    DEFAULT_CSS = f"Confirm {{ {_BOX} }}"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q,enter", "answer(False)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Lay the dialogue out."""
        with Vertical():
            yield Static(self._question, markup=False)
            yield Static("\n[b]y[/b] yes    [b]n[/b] no")

    def action_answer(self, yes: bool) -> None:
        """Close with the answer."""
        self.dismiss(yes)


class Help(ModalScreen[None]):
    """Lists the keys."""

    DEFAULT_CSS = f"Help {{ {_BOX} }}"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "close")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Lay the dialogue out."""
        with Vertical():
            yield Static(self._text, markup=False)

    def action_close(self) -> None:
        """Close."""
        self.dismiss(None)
