"""The command line: what a wrong input gets told, what an interrupt leaves, what progress looks like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nephi
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nephi.cli import main
from nephi.cli.parser import command_parser
from nephi.synthetic.phantom import Phantom

_HERE = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1])}  # where the package is not installed
_FAST = ["--iterations", "8", "--no-report"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom_2d: Phantom) -> Path:
    """The 2D phantom on disk and a collection of files that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("input")
    phantom_2d.write(folder)
    size = phantom_2d.fixed.GetSize()

    def write(name: str, image: sitk.Image, like: sitk.Image | None = phantom_2d.fixed) -> None:
        if like is not None:
            image.CopyInformation(like)
        sitk.WriteImage(image, str(folder / name))

    (folder / "garbage.nii.gz").write_bytes(b"no image at all" * 20)
    (folder / "garbage.json").write_text("{'no': json")
    (folder / "entry.json").write_text('{"fit": {"iteration": 3}}')
    write("4d.nii.gz", sitk.Image((9, 9, 9, 9), sitk.sitkFloat32), None)
    write("3d.nii.gz", sitk.GaussianSource(sitk.sitkFloat32, (20, 20, 20), (5.0,) * 3, (10.0,) * 3), None)
    write("slice.nrrd", sitk.GaussianSource(sitk.sitkFloat32, (20, 20, 1), (5.0,) * 3, (10.0, 10.0, 0.0)), None)
    write("colour.png", sitk.Image(size, sitk.sitkVectorUInt8, 3), None)
    write("vector.nrrd", sitk.Image(size, sitk.sitkVectorFloat32, 2))
    write("constant.nii.gz", sitk.Image(size, sitk.sitkInt16) + 7)
    write("tiny.nii.gz", sitk.GetImageFromArray(np.arange(20, dtype=np.float32).reshape(5, 4)), None)
    array = sitk.GetArrayFromImage(phantom_2d.fixed).astype(np.float32)
    array[3, 4] = np.nan
    write("nan.nrrd", sitk.GetImageFromArray(array))
    write("nan.nii.gz", sitk.GetImageFromArray(array))
    write("nan.nii", sitk.GetImageFromArray(array))
    write("empty_mask.nii.gz", sitk.Image(size, sitk.sitkUInt8))
    write("other_mask.nii.gz", phantom_2d.fixed_mask[2:, :], None)
    shifted = sitk.Image(phantom_2d.fixed_mask)
    shifted.SetOrigin([v + 3 for v in shifted.GetOrigin()])
    write("shifted_mask.nii.gz", shifted, None)
    for name in ("moving", "moving_mask"):  # the same image, very far away
        far = sitk.Image(getattr(phantom_2d, name))
        far.SetOrigin([v + 50_000 for v in far.GetOrigin()])
        write(f"far_{name}.nii.gz", far, None)
    corner = np.zeros(array.shape, np.uint8)
    corner[:4, :4] = 1
    write("corner_mask.nii.gz", sitk.GetImageFromArray(corner))
    voxel = np.zeros(array.shape, np.uint8)
    voxel[array.shape[0] // 2, array.shape[1] // 2] = 1
    write("voxel_mask.nii.gz", sitk.GetImageFromArray(voxel))
    (folder / "circle.nrrd").symlink_to("circle.nrrd")
    np.savetxt(folder / "three.csv", np.ones((3, 2)), fmt="%g", delimiter=",", header="x,y", comments="")
    np.savetxt(folder / "solid.csv", np.ones((3, 3)), fmt="%g", delimiter=",", header="x,y,z", comments="")
    return folder


# name: arguments after FIXED MOVING (or with them), words of the answer; files are looked up in the folder
_BAD = {
    "missing file": (["absent.nii.gz", "@moving.nii.gz"], ["fixed image", "absent.nii.gz"]),
    "garbage file": (["@garbage.nii.gz", "@moving.nii.gz"], ["fixed image", "cannot read"]),
    "4D": (["@fixed.nii.gz", "@4d.nii.gz"], ["moving image", "4D"]),
    "colour": (["@fixed.nii.gz", "@colour.png"], ["moving image", "3 components"]),
    "vector": (["@vector.nrrd", "@moving.nii.gz"], ["fixed image", "2 components"]),
    "2D against 3D": (["@fixed.nii.gz", "@3d.nii.gz"], ["2D", "3D"]),
    "constant": (["@constant.nii.gz", "@moving.nii.gz"], ["fixed image", "same value 7"]),
    "NaN": (["@nan.nrrd", "@moving.nii.gz"], ["fixed image", "NaN"]),
    "NaN in NIfTI": (["@fixed.nii.gz", "@nan.nii.gz"], ["moving image", "NaN"]),
    "NaN in NIfTI, not zipped": (["@nan.nii", "@moving.nii.gz"], ["fixed image", "NaN"]),
    "slice of a volume": (["@slice.nrrd", "@3d.nii.gz"], ["fixed image", "single slice"]),
    "tiny": (["@tiny.nii.gz", "@moving.nii.gz"], ["4x5", "too small"]),
    "folder without DICOM": (["@.", "@moving.nii.gz"], ["DICOM"]),
    "missing mask": (["--fixed-mask", "absent.nii.gz"], ["fixed mask", "absent.nii.gz"]),
    "garbage mask": (["--moving-mask", "@garbage.nii.gz"], ["moving mask", "cannot read"]),
    "empty mask": (["--fixed-mask", "@empty_mask.nii.gz"], ["fixed mask", "empty"]),
    "mask of another size": (["--fixed-mask", "@other_mask.nii.gz"], ["fixed mask", "grid"]),
    "mask elsewhere": (["--fixed-mask", "@shifted_mask.nii.gz"], ["fixed mask", "grid"]),
    "masks apart": (
        ["--fixed-mask", "@fixed_mask.nii.gz", "@fixed.nii.gz", "@far_moving.nii.gz", "--align", "none",
         "--moving-mask", "@far_moving_mask.nii.gz"], ["masks do not overlap", "--align"]),
    "masks of other parts": (
        ["@fixed.nii.gz", "@fixed.nii.gz", "--fixed-mask", "@fixed_mask.nii.gz", "--align", "none",
         "--moving-mask", "@corner_mask.nii.gz"], ["masks do not overlap"]),
    "images apart": (["@fixed.nii.gz", "@far_moving.nii.gz", "--align", "none"], ["images do not overlap"]),
    "one landmark file": (["--fixed-landmarks", "@fixed_landmarks.csv"], ["both images"]),
    "landmark counts": (
        ["--fixed-landmarks", "@fixed_landmarks.csv", "--moving-landmarks", "@three.csv"], ["3 moving landmarks"]),
    "landmarks in 3D": (["--fixed-landmarks", "@solid.csv", "--moving-landmarks", "@solid.csv"], ["3D", "2D"]),
    "garbage landmarks": (["--fixed-landmarks", "@garbage.json", "--moving-landmarks", "@three.csv"], ["garbage.json"]),
    "missing landmarks": (["--fixed-landmarks", "no.csv", "--moving-landmarks", "@three.csv"], ["no.csv"]),
    "unknown preset": (["--preset", "quick"], ["'quick'", "balanced"]),
    "garbage settings": (["--settings", "@garbage.json"], ["not valid JSON"]),
    "missing settings": (["--settings", "absent.json"], ["absent.json"]),
    "wrong entry": (["--settings", "@entry.json"], ["fit.iteration", "iterations"]),
    "negative iterations": (["--iterations", "-3"], ["fit.iterations", "-3", "at most 1000000"]),
    "unknown alignment": (["--align", "magic"], ["magic", "moments"]),
    "moments without masks": (["--align", "moments"], ["needs a mask"]),
    "unknown device": (["--device", "tpu"], ["tpu", "cuda"]),
    "missing regions": (["--regions", "absent.nii.gz"], ["regions", "absent.nii.gz"]),
    "regions elsewhere": (["--regions", "@shifted_mask.nii.gz"], ["regions", "grid"]),
    "an image as regions": (["--regions", "@nan.nrrd"], ["regions", "not a label map"]),
    "no seconds": (["--preview", "0"], ["--preview 0", "above 0"]),
    "unknown model": (["--model", "nobody"], ["no model 'nobody'", "model file"]),
    "an empty value": (["--fixed-mask", ""], ["--fixed-mask ''", "omit it"]),
    "links in a circle": (["@circle.nrrd", "@moving.nii.gz"], ["fixed image", "circle.nrrd"]),
    "a mask of one voxel": (
        ["--fixed-mask", "@voxel_mask.nii.gz", "--moving-mask", "@moving_mask.nii.gz"], ["masks do not overlap"]),
    "absent GPU": (["--device", "cuda:99"], ["cuda:99", "--device cpu"]),
}  # fmt: skip


def complaint(capfd) -> str:
    """The only line of stderr; C++ code writes there too, so that capsys is not enough."""
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("nephi: "), lines
    return lines[0]


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("nephi.fitting.fit.Adam.__init__", lambda *_: pytest.fail("work was begun"))
    arguments, words = _BAD[case]
    arguments = [str(folder / a[1:]) if a.startswith("@") else a for a in arguments]
    if arguments[0].startswith("--") and str(folder / "fixed.nii.gz") not in arguments:
        arguments = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz"), *arguments]
    assert main(["register", *arguments, "--output", str(tmp_path / "out")]) == 2
    text = complaint(capfd)
    for word in words:
        assert word in text, text
    assert not list(tmp_path.rglob("*.*")) and not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_cuda_where_there_is_none(folder, tmp_path, capfd):
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *pair, "--output", str(tmp_path / "out"), "--device", "cuda"]) == 2
    assert "--device cpu" in complaint(capfd)


@pytest.mark.parametrize("target", ["file", "file/below"])
def test_output_that_cannot_be_written_is_told_before_any_work(target, folder, tmp_path, capfd, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr("nephi.cli.commands.register", lambda *a, **k: pytest.fail("work was begun"))
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *pair, "--output", str(tmp_path / target)]) == 2
    assert "cannot write" in complaint(capfd)
    assert (tmp_path / "file").read_text() == "kept"


def test_out_of_gpu_memory_says_what_to_lower(folder, tmp_path, capfd, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nand more lines")

    monkeypatch.setattr("nephi.fitting.objective.Objective.__call__", full)
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *pair, "--output", str(tmp_path / "out")]) == 2
    text = complaint(capfd)
    assert "similarity.points" in text and "spacing_mm" in text and "--device cpu" in text
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_failure_while_writing_leaves_no_part_of_a_result(folder, tmp_path, monkeypatch):
    def broken(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr("nephi.result.Registration.save", broken)  # transforms and images are written by then
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *pair, "--output", str(tmp_path), *_FAST]) == 130
    assert not list(tmp_path.iterdir())


# ---- what works ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory) -> Path:
    """A short registration of the 2D phantom, with masks and landmarks."""
    output = tmp_path_factory.mktemp("done")
    arguments = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz"), "--output", str(output)]
    for part in ("fixed", "moving"):
        arguments += [f"--{part}-mask", str(folder / f"{part}_mask.nii.gz")]
        arguments += [f"--{part}-landmarks", str(folder / f"{part}_landmarks.csv")]
    assert main(["register", *arguments, "--iterations", "40", "--no-report", "--progress", "none"]) == 0
    return output


def test_register_writes_everything(done):
    names = {p.name for p in done.iterdir()}
    assert names == {
        "transform.h5", "inverse_transform.h5", "warped.nii.gz", "jacobian.nii.gz", "fields_disagreement.nii.gz",
        "error_map.nii.gz", "error_bound.nii.gz", "landmark_errors.csv",
        "registration.safetensors", "report.json"
    }  # fmt: skip
    report = json.loads((done / "report.json").read_text())
    assert report["tre_mm"]["after"]["mean"] < report["tre_mm"]["before"]["mean"]
    assert report["settings"]["fit"]["iterations"] == 40


def test_no_iterations_is_the_alignment_alone(folder, tmp_path, capsys):
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *pair, "--output", str(tmp_path), "--iterations", "0"]) == 0
    out = capsys.readouterr().out
    assert "folds        0 voxels" in out
    assert (tmp_path / "report.html").exists()


def test_warp_carries_images_labels_and_points(done, folder, tmp_path, phantom_2d):
    assert main(["warp", str(done), str(folder / "moving.nii.gz"), "--output", str(tmp_path / "w.nii.gz")]) == 0
    warped, again = (sitk.GetArrayFromImage(sitk.ReadImage(str(f / n))).astype(float)
                     for f, n in ((done, "warped.nii.gz"), (tmp_path, "w.nii.gz")))  # fmt: skip
    assert np.abs(warped - again).mean() < 1  # HU; the grid of the transform is chosen anew, without the mask
    mask = ["warp", str(done), str(folder / "moving_mask.nii.gz"), "--labels", "--output", str(tmp_path / "m.nii.gz")]
    assert main(mask) == 0
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.nii.gz"))))) == {0, 1}
    # fixed points forward, and back again
    there, back = tmp_path / "there.csv", tmp_path / "back.csv"
    assert main(["warp", str(done), str(folder / "fixed_landmarks.csv"), "--output", str(there)]) == 0
    assert main(["warp", str(done), str(there), "--inverse", "--output", str(back)]) == 0
    points, moved, returned = (np.loadtxt(f, delimiter=",", skiprows=1)[:, :2]
                               for f in (folder / "fixed_landmarks.csv", there, back))  # fmt: skip
    truth = phantom_2d.moving_landmarks_lps_mm
    assert np.linalg.norm(moved - truth, axis=-1).mean() < np.linalg.norm(points - truth, axis=-1).mean() / 2
    assert np.linalg.norm(returned - points, axis=-1).mean() < 2


def test_warp_onto_another_grid_and_back(done, folder, tmp_path):
    target = tmp_path / "r.nii.gz"
    command = ["warp", str(done), str(folder / "fixed.nii.gz"), "--inverse", "--output", str(target)]
    assert main(command) == 0
    assert sitk.ReadImage(str(target)).GetOrigin() == pytest.approx(
        sitk.ReadImage(str(folder / "moving.nii.gz")).GetOrigin(), abs=1e-4
    )


def test_jacobian_agrees_with_the_result(done, folder, tmp_path):
    target = tmp_path / "j.nii.gz"
    mask = folder / "fixed_mask.nii.gz"
    assert main(["jacobian", str(done), "--mask", str(mask), "--output", str(target)]) == 0
    inside = sitk.GetArrayFromImage(sitk.ReadImage(str(mask))) > 0
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (target, done / "jacobian.nii.gz"))
    np.testing.assert_allclose(a[inside], b[inside], atol=1e-4)
    assert (a[~inside] == 1).all()


@pytest.mark.parametrize("command", ["warp", "jacobian"])
def test_commands_on_what_is_no_result(command, folder, tmp_path, capfd):
    extra = [str(folder / "moving.nii.gz")] if command == "warp" else []
    assert main([command, str(tmp_path), *extra, "--output", str(tmp_path / "x.nii.gz")]) == 2
    assert "no such registration" in complaint(capfd)


def test_evaluate_of_what_is_no_transform(folder, capfd):
    for name in ("garbage.json", "absent.h5"):
        assert main(["evaluate", str(folder / name), "--fixed", str(folder / "fixed.nii.gz")]) == 2
        assert name in complaint(capfd)


def test_json_progress_is_a_line_an_event(folder, tmp_path, capfd):
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *pair, "--output", str(tmp_path), *_FAST, "--progress", "json"]) == 0
    streams = capfd.readouterr()
    entries = [json.loads(line) for line in streams.out.splitlines()]
    fractions = [e["fraction"] for e in entries]
    assert entries[-1]["stage"] == "done" and fractions[-1] == 1
    assert fractions[1:] == sorted(fractions[1:])
    assert any(e["stage"] == "optimising" and e["loss"] > 0 for e in entries)
    assert streams.err == ""


def test_previews_come_from_the_alignment_on_and_go_at_the_end(folder, tmp_path, capfd, monkeypatch):
    seen = []
    replace = os.replace

    def spy(source, target):
        replace(source, target)
        if Path(target).name == "preview.nrrd":
            seen.append(sitk.ReadImage(str(target)))

    monkeypatch.setattr("os.replace", spy)
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz"), "--align", "centres", "--iterations", "30"]
    options = ["--output", str(tmp_path / "out"), "--no-report", "--progress", "json", "--preview", "0.001"]
    assert main(["register", *pair, *options]) == 0
    entries = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    told = [e for e in entries if "preview" in e]
    assert len(told) == len(seen) == 32  # the last one is of the finished result
    assert {e["preview"] for e in told} == {str((tmp_path / "out" / "preview.nrrd").resolve())}
    assert [e["stage"] for e in told] == ["features"] + ["optimising"] * 31
    assert not [p for p in (tmp_path / "out").iterdir() if "preview" in p.name or p.name.startswith(".")]
    fixed = sitk.ReadImage(str(folder / "fixed.nii.gz"))
    reports = json.loads((tmp_path / "out" / "report.json").read_text())
    first, last = (sitk.GetArrayFromImage(i).reshape(-1, 2) for i in (seen[0], seen[-1]))
    # the first is the alignment, a shift here; over the fixed image, about 10 mm between its nodes
    np.testing.assert_allclose(first, np.tile(reports["alignment"]["offset_mm"], (len(first), 1)), atol=1e-3)
    assert np.abs(last - first).max() > 0.5
    assert seen[0].GetOrigin() == pytest.approx(fixed.GetOrigin(), abs=1e-4)
    assert 7 < max(seen[0].GetSpacing()) <= 10
    # the last is what transform.h5 holds
    transform = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    for index in ((3, 4), (9, 6)):
        point = seen[-1].TransformIndexToPhysicalPoint(index)
        expected = np.subtract(transform.TransformPoint(point), point)
        np.testing.assert_allclose(seen[-1][index], expected, atol=0.2)


def test_an_interrupt_takes_the_preview_along(folder, tmp_path, monkeypatch):
    def broken(*_, **__):
        assert (tmp_path / "preview.nrrd").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("nephi.cli.commands.write_all", broken)
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *pair, "--output", str(tmp_path), *_FAST, "--preview", "1"]) == 130
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_files_move_leaves_the_older_result(folder, done, tmp_path, monkeypatch):
    replace, reached = os.replace, []

    def dies(source, target):
        reached.append(Path(target).name)
        if reached.count("warped.nii.gz") == 2:  # the older one has moved away, this is the new one
            monkeypatch.setattr("os.replace", replace)
            raise KeyboardInterrupt
        replace(source, target)

    output = tmp_path / "out"
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz"), "--output", str(output), *_FAST]
    assert main(["register", *pair]) == 0
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    monkeypatch.setattr("os.replace", dies)
    assert main(["register", *pair, "--iterations", "3"]) == 130
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before and "report.json" in before


def test_devices_are_told_as_one_line(capfd):
    assert main(["devices"]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    found = json.loads(line)
    assert found[0]["name"] == "cpu" and found[0]["label"].startswith("CPU (")
    assert len(found) == 1 + torch.cuda.device_count()
    for device in found[1:]:
        assert device["name"].startswith("cuda:") and device["memory_mb"] > 0 and "GB)" in device["label"]


def test_the_report_keeps_what_it_was_made_from(done, folder):
    inputs = json.loads((done / "report.json").read_text())["inputs"]
    assert set(inputs) == {"fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks",
                           "auto_mask"}  # fmt: skip
    assert inputs["fixed"]["path"] == str((folder / "fixed.nii.gz").resolve())
    assert inputs["fixed"]["bytes"] == (folder / "fixed.nii.gz").stat().st_size


def test_slicer_progress_has_its_tags(folder, tmp_path, capfd):
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *pair, "--output", str(tmp_path), *_FAST, "--progress", "slicer"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert all(line.startswith("<filter-") for line in lines)
    assert "<filter-progress>1.0000</filter-progress>" in lines
    assert sum("<filter-comment>optimising</filter-comment>" in line for line in lines) == 1
    assert lines[-1].startswith("<filter-end>")


def test_every_argument_is_explained():
    (commands,) = (action for action in command_parser()._actions if isinstance(action.choices, dict))
    assert len(commands.choices) == 16
    for name, parser in commands.choices.items():
        assert parser.description, name
        for action in parser._actions:
            assert action.help, (name, action.option_strings or action.dest)


@pytest.mark.parametrize(
    "words, answer",
    [
        ([], "required: COMMAND; see nephi --help"),
        (["register", "a.nii.gz", "-o", "b"], "required: MOVING; see nephi register --help"),
        (["warp", "a", "b", "-o", "c", "--label-map"], "unrecognized arguments: --label-map; see nephi warp --help"),
        (["demo", "--seed", "one"], "argument --seed: invalid int value: 'one'; see nephi demo --help"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(words, answer, capfd):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and complaint(capfd).endswith(answer)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom nephi.cli import main\n"
        "for words in (['--help'], ['dirlab', '--help']):\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "print('LOADED', [m for m in ('torch', 'SimpleITK', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_HERE).stdout
    assert "register" in out and out.splitlines()[-1] == "LOADED []"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child there")
def test_ctrl_c_ends_at_once_and_leaves_no_result(tmp_path):
    command = [sys.executable, "-m", "nephi", "demo", "--preset", "accurate", "--output", str(tmp_path)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_HERE)
    time.sleep(6)
    assert run.poll() is None, "ended before it was interrupted"
    run.send_signal(signal.SIGINT)
    try:
        _, errors = run.communicate(timeout=20)
    finally:
        run.kill()
    assert run.returncode == 130
    assert errors.splitlines() == ["nephi: interrupted; no result was written"]
    left = {p.name for p in tmp_path.iterdir()}
    phantom = {f"{a}{b}" for a in ("fixed", "moving") for b in (".nii.gz", "_mask.nii.gz", "_landmarks.csv")}
    assert left <= phantom  # the generated input may stay


def test_a_caller_keeps_its_own_handlers_of_signals():
    before = signal.getsignal(signal.SIGTERM)
    assert main(["devices"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
