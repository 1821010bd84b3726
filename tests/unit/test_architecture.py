"""The house rules that imports can show: who knows whom, and what stays free of torch."""

import ast
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pretrain", "launch", "data_tools")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Parts that meet only as plain values in train.py.
PARTS = ("data", "augment", "models", "engine", "metrics", "checkpoint")

ALLOWED_BETWEEN_PARTS: set[tuple[str, str]] = set()

VENDORS = {
    "deepspeed": ("pretrain.engine", "pretrain.convert"),
    "webdataset": ("pretrain.data", "data_tools"),
    "wandb": ("pretrain.metrics.mirror",),
    "wandb_workspaces": ("pretrain.metrics.mirror",),
    "submitit": ("launch",),
    # Absent from CPU builds of torch: its kernels are imported when one is asked for.
    "triton": ("pretrain.kernels", "pretrain.fast_paths"),
    # Its threads do not survive a fork: only a program of its own may use it.
    "fsspec": ("pretrain.data.transfer",),
}

TORCH_FREE = (
    "pretrain.errors",
    "pretrain.files",
    "pretrain.location",
    "pretrain.world",
    "pretrain.run_directory",
    "pretrain.preflight",
    "pretrain.job",
    "pretrain.__main__",
    "pretrain.config.load",
    "pretrain.plan.derive",
    "pretrain.plan.render",
    "pretrain.plan.take_up",
    "pretrain.data.cache",
    "pretrain.data.manifest",
    "pretrain.data.remote_split",
    "pretrain.data.order",
    "pretrain.models.variants",
    "pretrain.augment.__main__",
    "pretrain.metrics.names",
    "pretrain.metrics.__main__",
    "pretrain.metrics.report.charts",
    "pretrain.metrics.report.page",
    "pretrain.metrics.report.process",
    "pretrain.checkpoint.layout",
    "pretrain.convert.sources",
    "pretrain.engine.schedule",
    "pretrain.evaluate.__main__",
    "pretrain.evaluate.classes",
    "pretrain.evaluate.recorded",
    "pretrain.engine.zero_config",
    "pretrain.profile.__main__",
    "pretrain.tune.__main__",
    "launch.runs",
    "launch.slurm",
    "launch.supervise.supervisor",
    "data_tools.build",
    "data_tools.index",
    "data_tools.shuffle_report",
    "data_tools.inspect",
    "data_tools.synthetic",
    "data_tools.verify",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_parts_do_not_know_each_other_and_vendors_stay_behind_walls(path):
    module = module_name(path)
    for imported in imports(path):
        for vendor, homes in VENDORS.items():
            if is_within(imported, (vendor,)):
                assert is_within(module, homes), f"{module} imports {imported}"
        for part in PARTS:
            if not is_within(module, (f"pretrain.{part}",)):
                continue
            for other in PARTS:
                if other != part and (part, other) not in ALLOWED_BETWEEN_PARTS:
                    assert not is_within(imported, (f"pretrain.{other}",)), (
                        f"{module} imports {imported}"
                    )
        if is_within(module, ("pretrain",)):
            assert not is_within(imported, ("launch", "data_tools")), f"{module} imports {imported}"
            if module != "pretrain.__main__":
                assert not is_within(imported, ("pretrain.train",)), f"{module} knows train.py"
        if is_within(module, ("data_tools",)):
            assert not is_within(imported, ("launch",)), f"{module} imports {imported}"


def test_what_a_login_node_runs_imports_no_torch():
    """One process for all: what a module imports is there for those after it, and never torch."""
    code = (
        "import importlib, sys\n"
        f"for module in {TORCH_FREE}:\n"
        "    importlib.import_module(module)\n"
        "    heavy = {'torch', 'deepspeed', 'wandb', 'submitit', 'webdataset'} & set(sys.modules)\n"
        "    if heavy:\n"
        "        sys.exit(f'{module} imports {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path} is longer than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno} {node.name} is {length} lines"


@pytest.mark.parametrize("package", [path.parent for path in SOURCES if path.name == "__init__.py"])
def test_packages_hold_only_their_docstring(package):
    body = ast.parse((package / "__init__.py").read_text()).body
    assert len(body) == 1, f"{package}/__init__.py holds code"
    assert isinstance(body[0], ast.Expr)


def test_nothing_unpickles_or_evaluates():
    banned = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "extractall"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "torch.load" and _weights_only(node):
                    assert module_name(path) == "pretrain.convert.pickles", f"{path} unpickles"
                    continue
                called = {name, name.rpartition(".")[2]} if name.endswith("extractall") else {name}
                assert not called & banned, f"{path}:{node.lineno} calls {name}"
                for keyword in node.keywords:
                    shell = keyword.arg == "shell" and ast.unparse(keyword.value) == "True"
                    assert not shell, f"{path}:{node.lineno} runs a shell"


def _weights_only(call: ast.Call) -> bool:
    return any(
        keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True"
        for keyword in call.keywords
    )


def test_every_folder_of_tests_is_collected(request):
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    passed_over = request.config.getini("norecursedirs")
    for folder in folders:
        for part in folder.relative_to(ROOT).parts:
            assert not any(fnmatch(part, pattern) for pattern in passed_over), folder


def test_no_two_modules_of_tests_share_a_name():
    """Pytest imports them all by their bare names."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    del names["conftest.py"]
    assert [name for name, count in names.items() if count > 1] == []
