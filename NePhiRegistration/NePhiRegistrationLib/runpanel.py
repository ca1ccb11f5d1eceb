"""The part of the panel that runs the registration: cost or obstacle, progress, Cancel, and installation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from . import dependencies, several, theme
from .i18n import tr as _
from .job import Job, LogicError
from .logic import Run
from .parameters import Parameters
from .resultpanel import readable
from .waiting import wait_cursor
from .words import duration


class RunPanel:
    """Several jobs are registered one after the other; one that fails does not keep the others from it."""

    def __init__(self, ui, logic, started: Callable[[], None], show: Callable[[list[Run], bool], None]):
        """``logic``: the module's; ``started()`` is called when a registration has begun, ``show(runs, ended)`` after
        each that was successful, with all of them, and when all have ended."""
        self.ui, self._logic, self._started, self._show = ui, logic, started, show
        self.parameters: Parameters | None = None  # while the module is open
        self.run: Run | None = None  # under way
        self.installation: dependencies.Installation | None = None  # while it lasts
        self._jobs: list[Job] = []  # begun with one press of Apply
        self._waiting: list[Job] = []  # those of them that have not begun yet
        self._done: list[Run] = []
        self._failures: list[str] = []
        self._note = ""  # how the last run ended, or why it could not begin
        self._failed = False  # whether that is a failure
        self._logged = 0  # lines of its log that are shown
        ui.applyButton.connect("clicked(bool)", self._apply)
        ui.cancelButton.connect("clicked(bool)", lambda _checked: self._cancel())
        ui.liveCheckBox.connect("toggled(bool)", self._show_live)

    @property
    def running(self) -> bool:
        return self.run is not None and self.run.state == "running"

    @property
    def busy(self) -> bool:
        return self.running or self.installation is not None

    def forget(self) -> None:
        """The scene or the application is being closed."""
        self._waiting, self._done = [], []
        if self.run is not None:
            self.run.cancel()
            self.run = None
        self._say("")

    def check(self) -> None:
        """Whether Apply can be pressed, with the expected cost; otherwise why not."""
        ui, p, running = self.ui, self.parameters, self.running
        jobs = several.jobs(p)
        problem = several.problem(p, jobs)
        if self.installation is not None:
            problem = self.installation.text
        ui.applyButton.enabled = not running and not problem
        ui.applyButton.toolTip = problem or _("Start the registration; Slicer stays usable while it runs.")
        _set_text(ui.applyButton, _("Apply") if len(jobs) == 1 else _("Apply all"))
        ui.cancelButton.enabled = running
        ui.cancelButton.toolTip = (
            _("End the registration now; the scene is left as it was before.") if running else _("Nothing is running.")
        )
        _set_text(ui.estimateLabel, "-" if problem else self._logic.expected(p, jobs))
        ui.progressBar.visible = running
        if running:
            begun = len(self._jobs) - len(self._waiting) - 1
            ui.progressBar.value = round(100 * (begun + self.run.fraction) / len(self._jobs))
        ui.noteLabel.styleSheet = f"color: {readable(ui.noteLabel, theme.RED)}" if self._failed else ""
        for label, text in ((ui.noteLabel, "" if running else self._note), (ui.statusLabel, problem)):
            text = self._progress() if running and label is ui.statusLabel else text
            _set_text(label, text)
            label.visible = bool(text)

    def tick(self) -> None:
        if self.installation is not None:
            self._log(self.installation.log)
            if not self.installation.running:
                self._end_installation()
        if self.running:
            with wait_cursor() if self.run.at_its_end else nullcontext():  # the result is read
                going_on = self.run.poll()
            self._log(self.run.log)
            if not going_on:
                self._end()

    # actions of the user

    def _apply(self, _checked: bool = False) -> None:
        reason = dependencies.problem()
        missing = [] if reason else dependencies.missing()
        self._say(reason, failed=bool(reason))
        if missing:
            self._install(missing)
        elif not reason:
            self._jobs = several.jobs(self.parameters)
            self._waiting, self._failures, self._done = list(self._jobs), [], []
            self._clear_log()
            self._begin()
        self.check()

    def _cancel(self) -> None:
        self._waiting = []
        self.run.cancel()
        self._end()
        self.check()

    def _show_live(self, on: bool) -> None:
        if self.running:
            self.run.show_live(on)

    # a registration

    def _begin(self) -> None:
        """Start the next possible registration; otherwise report how all of them ended."""
        while self._waiting:
            job = self._waiting.pop(0)
            try:
                with wait_cursor():  # the volumes are written
                    self.run = self._logic.engine.start(job)
            except LogicError as error:
                self._fail(job, str(error))
                continue
            self._logged = 0
            if len(self._jobs) > 1:
                self.ui.logTextEdit.appendPlainText(job.label)
            live = self.ui.liveCheckBox.checked if self.parameters is None else self.parameters.live
            self.run.show_live(live)
            self._started()
            return
        self._say(*self._ending())
        if self._done:
            self._show(self._done, True)
        self._done = []

    def _end(self) -> None:
        """The registration has ended, one way or the other. Only its result is kept, by the result section."""
        run, self.run = self.run, None
        if run.state == "done":
            self._done.append(run)
            self._show(self._done, False)
        elif run.state == "failed":
            self._fail(run.job, run.error)
            self.ui.logGroupBox.collapsed = False
        else:  # by the user, or as its nodes were removed
            self._say(run.error or self._cancelled())
            self._waiting, self._done = [], []
            return
        self._begin()

    def _fail(self, job: Job, reason: str) -> None:
        text = _("{setting}: {reason}").format(setting=job.label, reason=reason)
        self._failures.append(text if len(self._jobs) > 1 else reason)

    def _ending(self) -> tuple[str, bool]:
        """How all of them ended, and whether one failed."""
        seconds = sum(run.outputs.report["time_s"]["wall"] for run in self._done)
        time, failures = duration(seconds), " ".join(self._failures)
        if len(self._jobs) == 1:
            return failures or _("Done in {time}.").format(time=time), bool(failures)
        text = _("{done} of {all} done in {time}: compare them in the table Results below.")
        text = text.format(done=len(self._done), all=len(self._jobs), time=time)
        return f"{text} {failures}".strip(), bool(failures)

    def _cancelled(self) -> str:
        if not self._done:
            return _("Cancelled. The scene is as it was before.")
        text = _("Cancelled; {done} of {all} were done before and are kept.")
        return text.format(done=len(self._done), all=len(self._jobs))

    def _progress(self) -> str:
        text = progress(self.run)
        if len(self._jobs) == 1:
            return text
        number = len(self._jobs) - len(self._waiting)
        words = _("{setting} ({number} of {all}): {progress}")
        return words.format(setting=self.run.job.label, number=number, all=len(self._jobs), progress=text)

    # an installation

    def _install(self, names: list[str]) -> None:
        """The user presses Apply again when it is done: until then, anything may have been changed."""
        if dependencies.confirm(names):
            self._clear_log()
            self.installation = dependencies.Installation(names)
        else:
            text = _("The registration needs {names}, which was not installed.")
            self._say(text.format(names=", ".join(names)), failed=True)

    def _end_installation(self) -> None:
        installation, self.installation = self.installation, None
        if installation.error:
            self._say(installation.error, failed=True)
            self.ui.logGroupBox.collapsed = False
        else:
            self._say(_("Everything needed is installed: press Apply to register."))
            self._started()

    # words

    def _say(self, note: str, failed: bool = False) -> None:
        self._note, self._failed = note, failed

    def _log(self, lines: list[str]) -> None:
        for line in lines[self._logged :]:
            self.ui.logTextEdit.appendPlainText(line)
        self._logged = len(lines)

    def _clear_log(self) -> None:
        self.ui.logTextEdit.setPlainText("")
        self._logged = 0


def progress(run: Run) -> str:
    if run.seconds_left is None:
        return f"{run.stage_text} ..."
    return _("{stage}: {time} left").format(stage=run.stage_text, time=duration(run.seconds_left))


def _set_text(widget, text: str) -> None:
    if widget.text != text:
        widget.text = text
