"""The cluster section: what is refused in one line, and that the docs list every field."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.config.cluster import ClusterConfig
from pretrain.config.load import CONFIGS_DIR, load_run
from pretrain.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs" / "launching.md"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("partition='a b'", "cluster.partition: expected names of letters"),
        ("partition=--x", "cluster.partition: expected names"),
        ("account='$(id)'", "cluster.account: expected a name"),
        ("qos=a;b", "cluster.qos: expected a name"),
        ("reservation='a\\nb'", "cluster.reservation: expected names"),
        ("constraint='a b'", "cluster.constraint: expected node features"),
        ("nodelist=../x", "cluster.nodelist: expected node names"),
        ("exclude=n[1-3];x", "cluster.exclude: expected node names"),
        ("mail_user='a@b c'", "cluster.mail_user: expected a mail address"),
        ("mail_type=[ENDED]", "cluster.mail_type.0: input should be 'NONE', 'BEGIN'"),
        ('comment="a\'b"', "cluster.comment: expected no quotes"),
        ("comment=é", "cluster.comment: expected printable ASCII"),
        ("container_image='a b'", "cluster.container_image: expected an image"),
        ("container_mounts=[/a:/b]", "container_mounts: there is no container"),
        ("setup=['#SBATCH -p x']", "cluster.setup.0: expected a command"),
        ("setup=['export HF_TOKEN=abc']", "cluster.setup.0: holds HF_TOKEN"),
        ("srun_arguments=[-N2]", "cluster.srun_arguments.0: expected --option"),
        ("srun_arguments=[--nodes=2]", "--nodes is set by the launcher"),
        ("sbatch_options={nodes: 2}", "sbatch_options: nodes: is decided by the launcher"),
        ("sbatch_options={mem: 2G}", "sbatch_options: mem: give cluster.memory_gib_per_node"),
        ("sbatch_options={a=b: 2}", "sbatch_options: expected an option's long name"),
        ("sbatch_options={nice: 1.5}", "expected text, a whole number or true, got 1.5"),
        ("sbatch_options={mem_per_gpu: 1G, mem-per-gpu: 2G}", "an option twice"),
        ("sbatch_options={export: 'ALL,HF_TOKEN=abc'}", "holds HF_TOKEN"),
        ("signal_lead_seconds=0", "cluster.signal_lead_seconds: input should be greater"),
        ("nods=2", "did you mean 'cluster.nodes'"),
    ],
)
def test_refusals_are_one_line_that_names_the_field(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_run("swin_t_1k", [f"cluster.{override}"], cluster="slurm")
    (line,) = str(refusal.value).splitlines()
    assert expected in line


def test_options_are_set_one_by_one_on_the_command_line() -> None:
    overrides = ["cluster.nodes=4", "cluster.sbatch_options.mem_per_gpu=60G"]
    cluster = load_run("swin_t_1k", overrides, cluster="slurm").cluster
    assert (cluster.nodes, cluster.sbatch_options) == (4, {"mem_per_gpu": "60G"})


def uncommented(path: Path) -> dict[str, Any]:
    """A cluster file with its commented-out fields switched on."""
    return yaml.safe_load(re.sub(r"^# ?(?=[a-z_]+:|  )", "", path.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["slurm", "slurm_pyxis"])
def test_the_file_to_copy_shows_fields_that_are_right(name: str) -> None:
    path = CONFIGS_DIR / "clusters" / f"{name}.yaml"
    values = uncommented(path)
    ClusterConfig.model_validate_json(json.dumps(values))
    if name == "slurm":
        containers = {field for field in ClusterConfig.model_fields if "container" in field}
        assert set(values) == set(ClusterConfig.model_fields) - containers
    assert load_run("swin_t_1k", cluster=name).cluster.executor == "slurm"


def test_the_docs_list_every_field_with_its_default() -> None:
    rows = re.findall(r"^\| `cluster\.(\w+)` \| (.+?) \| .+ \| `(.+?)` \|$", DOCS.read_text(), re.M)
    fields = ClusterConfig.model_fields
    defaults = {
        name: json.dumps(field.get_default(call_default_factory=True))
        for name, field in fields.items()
    }
    assert {name: default for name, _, default in rows} == defaults
    assert [name for name, _, _ in rows] == list(fields), "in the order of the section"
    for name, unit, _ in rows:
        for word in ("seconds", "minutes", "gib"):
            assert word not in name or unit.lower() == {"gib": "gib"}.get(word, word)
