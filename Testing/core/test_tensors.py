"""Tensor files: checked before they are used, and made anew where that is possible."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from nephi.errors import NephiError, collected_notices
from nephi.files.tensors import read_tensors, write_tensors
from nephi.learning import train
from nephi.learning.settings import TrainSettings
from nephi.learning.state import keep_log
from nephi.result import Registration
from nephi.settings import NeuralSettings


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(12.0), "b": torch.tensor(2)}, {"format": "x"})
    return tmp_path / "a.safetensors"


def test_what_is_written_comes_back(path):
    metadata, tensors = read_tensors(path, "a file")
    assert metadata == {"format": "x"} and torch.equal(tensors["a"], torch.arange(12.0)) and int(tensors["b"]) == 2


def test_every_damaged_byte_is_found(path):
    data = path.read_bytes()
    for at in range(8, len(data)):
        if data[at] == 0x20:  # the header is filled up with blanks
            continue
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(NephiError, match="cannot read"):
            read_tensors(path, "a file")


@pytest.mark.skipif(sys.platform == "win32", reason="no file that is in use can be cut there")
def test_a_file_that_is_cut_while_its_tensors_are_in_use(tmp_path):
    write_tensors(path := tmp_path / "a.safetensors", {"a": torch.ones(200_000)}, {})
    use = f"from nephi.files.tensors import read_tensors as r; import os; t = r({str(path)!r}, 'a file')[1]['a']; "
    use += f"os.truncate({str(path)!r}, 100); assert t.sum() == 200_000"
    assert subprocess.run([sys.executable, "-c", use]).returncode == 0


def test_files_without_a_checksum_are_read(path):
    safetensors.torch.save_file({"a": torch.ones(2)}, str(path), {"format": "y"})
    assert read_tensors(path, "a file")[0] == {"format": "y"}


@pytest.mark.parametrize("width", [10**9, "wide", None, -1])
def test_a_registration_of_another_make_takes_no_memory(width, tmp_path):
    field = {"width": width}
    cube = {"centre_lps_mm": [0, 0], "half_sides_mm": [9, 9], "direction": [1, 0, 0, 1]}
    geometry = {"cube": cube, "maps": {"": {"field": field, "code_size": [2, 2]}}}
    metadata = {"format": "nephi-registration-2", "geometry": json.dumps(geometry), "settings": "{}"}
    write_tensors(path := tmp_path / "registration.safetensors", {"fields.a": torch.ones(2)}, metadata)
    with pytest.raises(NephiError):
        Registration.load(path)


def test_settings_that_ask_for_more_than_their_file_holds(tmp_path):
    field = asdict(NeuralSettings(width=4000, hidden_layers=20))
    cube = {"centre_lps_mm": [0, 0], "half_sides_mm": [9, 9], "direction": [1, 0, 0, 1]}
    geometry = {"cube": cube, "maps": {"": {"field": field, "code_size": [2, 2]}}}
    metadata = {"format": "nephi-registration-2", "geometry": json.dumps(geometry), "settings": "{}"}
    write_tensors(path := tmp_path / "registration.safetensors", {"fields.a": torch.ones(2)}, metadata)
    with pytest.raises(NephiError, match="more tensors than it contains"):
        Registration.load(path)


def test_reading_weights_does_not_load_the_compiler():
    load = "import sys; from nephi.learning.model import Model; Model.load('lung'); "
    load += "assert 'torch._dynamo' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", load]).returncode == 0


def test_a_damaged_line_of_a_log_costs_that_line_alone(tmp_path):
    (path := tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n{"step": 4}\n', encoding="utf-8")
    with collected_notices() as notices:
        keep_log(path, 3)
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 3}\n' and "1 damaged" in notices[0]


def test_processes_without_room_for_what_they_share_are_not_started(monkeypatch):
    settings, data = TrainSettings(workers=2), [torch.zeros(1000)]
    monkeypatch.setattr(train.sys, "platform", "linux")
    for free, expected in ((10**9, 2), (64_000, 2), (20_000, 0)):
        monkeypatch.setattr(train.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with collected_notices() as notices:
            assert train._workers(data, settings) == expected
        assert bool(notices) == (expected == 0)
