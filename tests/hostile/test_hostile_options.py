"""Options and outputs that are hostile, over every command that takes them: one line, and nothing else happens.

To add one, add a line to ``OPTIONS``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from refusals import SMALL, call, refused, there

OPTIONS: Sequence[str] = (
    "encode good.png --steps 1000000000",
    "encode good.png --steps 20000",
    "encode good.png --steps 20000 --exact",
    "encode good.png --steps 100 --solver heun --max-nfe 150",
    "encode good.png --steps 0",
    "encode good.png --steps nan",
    "encode good.png --rtol nan --solver per-sample-bosh3",
    "encode good.png --atol inf --solver per-sample-bosh3",
    "encode good.png --rtol -1 --solver scipy-RK45",
    "encode good.png --grid nan,5",
    "encode good.png --grid 5,inf",
    "encode good.png --grid 5,1e30",
    "encode good.png --grid ,",
    "encode good.png --grid nowhere",
    "encode good.png --batch-size 100000000000000000000",
    "encode good.png --grid scheduler",
    "encode good.png --size 0",
    "encode good.png --size 32",
    "encode good.png --size 100000000x1",
    "encode good.png --prompt cat",
    "encode good.png --dtype int8",
    "encode good.png --config nowhere",
    "encode good.png --config .",
    "encode good.png --model good.png",
    "encode good.png --model nowhere.safetensors",
    "edit good.png --from 'a cat' --to 'a dog'",
    "encode good.png -o good.png",
    "encode good.png -o nowhere/good.pt",
    "encode good.png -o /proc/good.pt",
    "encode good.png --model nowhere",
    "encode good.png --model no/such/model",
    "encode good.png -o " + 300 * "long",
    "reconstruct good.png --steps 20000",
    "reconstruct good.png --target-psnr nan",
    "reconstruct good.png --target-psnr inf",
    "reconstruct good.png --target-psnr -3",
    "reconstruct good.png --target-psnr 0",
    "sample -n 1000000000",
    "sample -n 100000000000000000000000",
    "sample -n 0",
    "sample --steps 1000000000",
    "sample --steps 20000",
    "sample --eta nan",
    "sample --eta 2",
    "sample --seed -1",
    "sample --seed 100000000000000000000000",
    "sample --seed 100000000000000000000000 --eta 1",
    "sample -o good.png",
    "sample -o sheet.jpg",
    "sample -o nowhere/sheet.png",
    "interpolate --seed 1 --seed 2 -n 1000000000",
    "interpolate --seed 1 --seed 2 --seed 3 --seed 4 -n 100000",
    "interpolate --seed 1 --seed 2 -n 1000000000 --frames frames",
    "interpolate --seed 1 --seed 2 --steps 20000",
    "interpolate --seed 1 --seed 100000000000000000000000",
    "interpolate --seed 1",
    "decode nowhere.pt",
    "dataset nowhere -o out",
    "dataset empty -o out",
    "dataset good.png -o out",
    "dataset /dev/zero -o out",
    "dataset loop -o out",
    "dataset pictures -o good.png",
    "dataset pictures -o /proc/out",
    "dataset pictures -o out --workers -1",
    "dataset pictures -o out --shard-size 0",
    "dataset pictures -o out --engine nowhere",
    "dataset pictures -o out --engine torchrun",
    "dataset pictures -o out --engine ray --workers 0",
    "dataset pictures -o out --workers 0 --steps 20000",
    "dataset pictures -o out --workers 0 --solver scipy-RK45 --steps 3",
    "dataset pictures -o out --workers 0 --class cat",
    "dataset pictures -o out --model nowhere",
    "take pictures good.png",
    "take nowhere good.png",
    "info nowhere.pt",
    "info nowhere",
    "train pictures -o run --steps 1 --save-minutes nan",
    "train pictures -o run --steps 1 --save-minutes -1",
    "train pictures -o run --steps 1 --save-minutes inf",
    "train pictures -o run --minutes nan",
    "train pictures -o run --minutes inf",
    "train pictures -o run --steps 0",
    "train pictures -o run --steps -1",
    "train pictures -o run --steps 1 --batch-size 0",
    "train pictures -o run --steps 1 --learning-rate nan",
    "train pictures -o run --steps 1 --ema nan",
    "train pictures -o run --steps 1 --seed 100000000000000000000000",
    "train pictures -o good.png --steps 1",
    "train pictures -o pictures/run --steps 1",
    "train pictures -o run --resume",
    "train nowhere -o run --steps 1",
    "train /dev/zero -o run --steps 1",
    "train pictures -o run --steps 1 --batch-size 1000000000000",
    "interpolate --seed 1 --seed 2 --frames nn.png -o nn.png",
    "interpolate good.png --seed 1 -o good.png --overwrite",
    "encode good.png -o loop --overwrite",
    "calibrate --images pictures --work good.png",
    "reconstruct good.png --target-psnr 1e308",
    "calibrate --images pictures --steps 2 --steps 2",
    "analyze overhead --batch-size 10000000000000000000 --out rows",
    "analyze consistency --seed 100000000000000000000000 --out rows",
    "calibrate --images pictures --latents 1000000000",
    "calibrate --images pictures --steps 1000000000",
    "calibrate --images pictures --steps 1",
    "calibrate --images pictures --seed 100000000000000000000000",
    "calibrate --images nowhere",
    "calibrate --images empty",
    "analyze curvature --images empty --out rows",
    "analyze curvature --images pictures --out good.png",
    "trace good.png --solver scipy-RK45",
    "trace good.png --steps 20000",
    "trace good.png -o good.png --overwrite",
    "trace good.png -o trace.jpg",
    "trace nowhere.png",
    # A model without classes.
    "encode good.png --class cat",
    "encode good.png --guidance 2",
    "sample --class all",
    "edit good.png --to cat",
    "analyze curvature --class cat --images pictures --out rows",
    # Pictures in no folder, and a model that cannot be trained on.
    "train pictures -o run --steps 1 --classes",
    "train pictures -o run --steps 1 --classes --label-dropout nan",
    "train pictures -o run --steps 1 --label-dropout 1",
    "train pictures -o run --steps 1 --init nowhere",
    "export nowhere -o twin",
)
# Those of a model that knows the classes cat, dog and horse.
CLASS_OPTIONS: Sequence[str] = (
    "encode good.png --class cow",
    "encode good.png --class 3",
    "encode good.png --class -1",
    "encode good.png --class 1.5",
    "encode good.png --class all",
    "encode good.png --class " + 300 * "long",
    "encode good.png --class cat --guidance nan",
    "encode good.png --class cat --guidance inf",
    "encode good.png --class cat --guidance 1e300 --steps 3",
    "encode good.png --class none --guidance 2",
    "reconstruct good.png --class cat --guidance -1e30 --steps 3",
    "sample --class cow",
    "sample --class all --class cat",
    "sample --class all -n 100000000",
    "sample --class cat --guidance 1e30 --steps 3",
    "interpolate --seed 1 --seed 2 --class cat --class dog --class horse",
    "interpolate --seed 1 --seed 2 --class cow",
    "edit good.png --to cow",
    "edit good.png --to dog --from cow",
    "edit good.png --to dog --guidance nan",
    "edit good.png --to dog --guidance 1e30 --steps 3",
    "edit good.png --to dog --strength nan",
    "edit good.png --to dog --strength 0",
    "edit good.png --to dog --strength -0.5",
    "edit good.png --to dog --strength 1.5",
    "edit good.png --to dog --strength 1e-300",
    "edit good.png --to dog --strength 0.5 --grid 0,500,999",
    "edit good.png --to dog --steps 20000",
    "edit good.png --to dog -o good.png --overwrite",
    "edit good.png --to dog -o strip.jpg",
    "edit nowhere.png --to dog",
    "calibrate --images pictures --class cow",
    "calibrate --images pictures --class cat --guidance nan",
    "calibrate --images pictures --guidance 2",
    "analyze curvature --class cow --images pictures --out rows",
    "analyze curvature --guidance 2 --images pictures --out rows",
)
WITH_MODEL = (
    "dataset",
    "encode",
    "reconstruct",
    "sample",
    "interpolate",
    "decode",
    "calibrate",
    "analyze",
    "edit",
    "trace",
)


@pytest.mark.parametrize("line", CLASS_OPTIONS)
def test_options_with_classes(line: str, good: Path, class_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    shutil.copy(good, tmp_path / "pictures")
    before = there(tmp_path)
    refused(call(*line.split(), "--model", str(class_model)))
    assert there(tmp_path) == before


@pytest.mark.parametrize("line", OPTIONS)
def test_options(line: str, good: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    shutil.copy(good, tmp_path / "pictures")
    (tmp_path / "unet.json").write_text(json.dumps(SMALL))
    before = there(tmp_path)
    words = line.split()
    if words[0] in WITH_MODEL and "--model" not in words:
        words += ["--model", str(tiny_model)]
    if words[0] == "train":
        words += ["--cpu"] if {"--resume", "--init"} & {*words} else ["--unet", "unet.json", "--cpu"]
    refused(call(*words))
    assert there(tmp_path) == before
