"""Nothing that a config says can become shell or another option: scripts are read back."""

import json
import random
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from submitit import SlurmExecutor

from launch.script import JobSpec, check_setup, render, submission_environment
from pretrain.config.cluster import FIELD_OF_OPTION, ClusterConfig
from pretrain.config.section import RunName
from pretrain.errors import LaunchError

NAME = TypeAdapter(RunName)
HARD = [
    *"\n\r\t\0 '\"`$;#&|<>()[]{}\\%!*?~^=,:@é\u2028\u0085",
    *(
        "$(touch x)",
        "\n#SBATCH --uid=0\n",
        "#SBATCH --wrap=x",
        "--export=NONE",
        "\\\n",
        "'; rm x; '",
    ),
]
"""What means something to bash, to Slurm, or to whoever reads lines."""
SETUP = [
    *("module load cuda/12.4", "source ~/.bashrc", "export A=$(cat f) B='c d'", "ulimit -n 65536"),
    *('export NCCL_DEBUG="WARN"', "true # said", "[ -f x ] && . x", "echo $((1 + 2)) \\# done"),
]
HARD_SETUP = ["# command", "#SBATCH --uid=0", "cat << E", "echo 'a", "echo a\\", "a\nb", "", "\t"]


@pytest.fixture(autouse=True)
def with_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))


class Draw:
    """Random jobs: mostly plausible, half of them with something hard in some places."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._hard = False

    def spec(self) -> JobSpec:
        """A job, if its name and its cluster are accepted.

        Raises:
            ValidationError: they are refused.
        """
        pick = self._random
        self._hard = pick.random() < 0.5
        # As `check_slurm` lets paths pass.
        folder = Path("/r", *pick.choices(["a b", "#x", "$(y)", "z;`w`", "é&", "*"], k=2))
        elements = pick.choice([None, 2, 40])
        return JobSpec(
            name=NAME.validate_python(self._text("swin--optim.lr=0.001--seed=1")),
            folder=folder / "submitit",
            directory=folder / "code",
            ranks_per_node=pick.randint(1, 16),
            cluster=ClusterConfig.model_validate_json(json.dumps(self._cluster())),
            after=tuple(pick.choices(["7", "41", "1234_5"], k=pick.randint(0, 2))),
            elements=elements,
            concurrent=pick.choice([None, 1, elements]) if elements else None,
        )

    def _cluster(self) -> dict[str, Any]:
        pick = self._random
        fields: dict[str, Any] = {
            "gpus_per_node": lambda: pick.randint(1, 16),
            "cpus_per_rank": lambda: pick.randint(1, 99),
            "memory_gib_per_node": lambda: pick.randint(0, 4000),
            "exclusive": lambda: pick.random() < 0.5,
            "time_limit_minutes": lambda: pick.randint(1, 10**6),
            "signal_lead_seconds": lambda: pick.randint(1, 65535),
            "partition": lambda: self._text("long,a100"),
            "account": lambda: self._text("lab.vision"),
            "qos": lambda: self._text("high-2"),
            "reservation": lambda: self._text("night_7"),
            "constraint": lambda: self._text("[a100*2&ib|h100]"),
            "nodelist": lambda: self._text("n[1-4,7],m01"),
            "exclude": lambda: self._text("rack-2-[001-004]"),
            "comment": lambda: self._text("Swin L # on 22K; a & b (c) <d>"),
            "mail_type": lambda: pick.sample(["BEGIN", "END", "FAIL", "TIME_LIMIT_80"], 2),
            "mail_user": lambda: self._text("a.b+c@site.org"),
            "sbatch_options": self._options,
            "setup": self._setup,
        }
        cluster = {key: draw() for key, draw in fields.items() if pick.random() < 0.4}
        return {"executor": "slurm", "nodes": pick.randint(1, 999), **cluster}

    def _options(self) -> dict[str, Any]:
        pick = self._random
        names = ["mem-per-gpu", "nice", "wckey", "spread_job", "licenses", "switches"]
        if self._hard and pick.random() < 0.3:
            names = ["nodes", "wrap", "mem", "Nice", self._text("a-b"), "export"]
        values = [self._text("x=1,y:2"), pick.randint(-5, 5), True]
        return {name: pick.choice(values) for name in pick.sample(names, 2)}

    def _setup(self) -> list[str]:
        pick = self._random
        hard = self._hard and pick.random() < 0.3
        return pick.sample(HARD_SETUP + SETUP if hard else SETUP, pick.randint(1, 3))

    def _text(self, plain: str) -> str:
        pick = self._random
        if not self._hard or pick.random() < 0.7:
            return plain
        at = pick.randint(0, len(plain))
        return plain[:at] + "".join(pick.choices(HARD, k=pick.randint(1, 3))) + plain[at:]


@cache
def words_of(line: str) -> list[str]:
    return shlex.split(line)


def parse(script: str) -> tuple[dict[str, str | bool], list[str], list[str]]:
    """The options Slurm reads in a script, its set-up lines, the words of its last command.

    Slurm reads `#SBATCH` lines, and those of other systems, up to the first that is no comment.
    """
    lines = script.split("\n")
    assert lines[:3] == ["#!/bin/bash", "", "# Parameters"]
    options: dict[str, str | bool] = {}
    position = 3
    while lines[position].startswith("#SBATCH "):
        (word,) = words_of(lines[position].removeprefix("#SBATCH "))
        name, separator, value = word.removeprefix("--").partition("=")
        assert word.startswith("--")
        assert name not in options
        options[name] = value if separator else True
        position += 1
    assert not any(line.startswith(("#SBATCH", "#PBS", "#BSUB")) for line in lines[position:])
    assert lines[-4:-2] == ["# command", "export SUBMITIT_EXECUTOR=slurm"]
    assert (lines[-5], lines[-1]) == ("", "")
    setup = lines[position:-5]
    assert not setup or setup[:2] == ["", "# setup"]
    return options, setup[2:], words_of(lines[-2])


def read_back(script: str, like: JobSpec) -> JobSpec:
    """The job that a script says, with what no script says taken from another."""
    options, setup, command = parse(script)
    take = options.pop
    assert take("requeue") is True
    assert take("kill-on-invalid-dep") == "yes"
    assert take("open-mode") == "append"
    signal, _, lead = str(take("signal")).partition("@")
    assert signal == "USR2"
    assert command[:-1] == ["exec", sys.executable, "-u", "-m", "submitit.core._submit"]
    folder = Path(command[-1])
    elements, concurrent = None, None
    array = str(take("array", ""))
    pattern = "%A_%a" if array else "%j"
    assert take("output") == f"{folder}/{pattern}_0_log.out"
    if array:
        last, _, most = array.removeprefix("0-").partition("%")
        elements, concurrent = int(last) + 1, int(most)
    dependency = str(take("dependency", ""))
    name, directory = str(take("job-name")), Path(str(take("chdir")))
    ranks = int(str(take("ntasks-per-node")))
    values: dict[str, Any] = {
        "nodes": int(str(take("nodes"))),
        "cpus_per_rank": int(str(take("cpus-per-task"))) if "cpus-per-task" in options else None,
        "signal_lead_seconds": int(lead),
        "setup": tuple(setup),
    }
    for option, field in FIELD_OF_OPTION.items():
        value = take(option, None)
        if field in ("gpus_per_node", "time_limit_minutes"):
            value = None if value is None else int(str(value))
        elif field == "memory_gib_per_node":
            value = None if value is None else int(str(value).removesuffix("G"))
        elif field == "mail_type":
            value = tuple(str(value).split(",")) if value else ()
        elif field == "exclusive":
            value = value is True
        if not option.startswith("container"):
            values[field] = value
    values["sbatch_options"] = options
    return JobSpec(
        name=name,
        folder=folder,
        directory=directory,
        ranks_per_node=ranks,
        cluster=like.cluster.model_copy(update=values),
        after=tuple(dependency.removeprefix("afterok:").split(":")) if dependency else (),
        elements=elements,
        concurrent=concurrent,
    )


def as_written(spec: JobSpec) -> JobSpec:
    """The same job as a script can say it: options in Slurm's spelling, no limit that is none."""
    options = {
        name.replace("_", "-"): value if value is True else str(value)
        for name, value in spec.cluster.sbatch_options.items()
    }
    cluster = spec.cluster.model_copy(update={"sbatch_options": options})
    concurrent = spec.concurrent or spec.elements
    return replace(spec, cluster=cluster, concurrent=concurrent)


def check_many(count: int, seed: int) -> list[str]:
    """Draw jobs until so many were accepted, rendered and read back; their scripts."""
    draw = Draw(seed)
    scripts: list[str] = []
    refused = 0
    while len(scripts) < count:
        try:
            spec = draw.spec()
        except ValidationError:
            refused += 1
            continue
        script = render(spec)
        assert read_back(script, spec) == as_written(spec), script
        scripts.append(script)
    assert 0.1 < refused / count < 1, "too few or too many jobs are refused"
    return scripts


def bash_parses(script: str) -> bool:
    answer = subprocess.run(
        ["bash", "-n"], input=script, text=True, capture_output=True, check=False
    )
    return answer.returncode == 0 and not answer.stderr


def test_scripts_say_what_jobs_say_and_bash_takes_them() -> None:
    for script in check_many(300, seed=1)[:40]:
        assert bash_parses(script), script


@pytest.mark.slow
def test_a_hundred_thousand_scripts_say_what_jobs_say() -> None:
    for script in check_many(100_000, seed=2)[::500]:
        assert bash_parses(script), script


def test_bad_nodes_are_left_out_besides_those_of_the_config() -> None:
    spec = JobSpec("a", Path("/r/s"), Path("/r/c"), 1, ClusterConfig(), excluded=("n3", "n7"))
    assert parse(render(spec))[0]["exclude"] == "n3,n7"
    both = replace(spec, cluster=ClusterConfig(exclude="n[1-2]"))
    assert parse(render(both))[0]["exclude"] == "n[1-2],n3,n7"


def test_no_variable_beats_the_script_and_no_allocation_shapes_it() -> None:
    spec = JobSpec("a", Path("/r/s"), Path("/r/c"), 1, ClusterConfig(partition="p"))
    kept = {"SBATCH_ACCOUNT": "lab", "SBATCH_TIMELIMIT": "9", "SLURM_CONF": "/c", "HOME": "/h"}
    beating = dict.fromkeys(
        ["SBATCH_PARTITION", "SBATCH_OUTPUT", "SBATCH_WAIT", "SLURM_NNODES"], "x"
    )
    assert submission_environment(render(spec), kept | beating) == kept
    limited = replace(spec, cluster=ClusterConfig(account="mine", time_limit_minutes=60))
    kept = {"SLURM_CONF": "/c", "HOME": "/h"}
    both = {"SBATCH_ACCOUNT": "lab", "SBATCH_TIMELIMIT": "9"}
    assert submission_environment(render(limited), kept | both) == kept


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        (["for i in 1; do"], "bash cannot parse it"),
        (["x=$(date"], "bash cannot parse it"),
        (["if true; then", "module load a", "fi"], None),
    ],
)
def test_set_up_lines_are_parsed_together(setup: list[str], expected: str | None) -> None:
    cluster = ClusterConfig(setup=tuple(setup))
    if expected is None:
        check_setup(cluster)
    else:
        with pytest.raises(LaunchError, match=expected):
            check_setup(cluster)
