"""What must never be: a secret in a file, code in data, a path that climbs out, a port that the world sees."""

import ast
import io
import logging
import re
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.runner import SequentialRunner
from planted import holding

from gemma_alignment import cli
from gemma_alignment.config import ConfigError, build
from gemma_alignment.datasets.model_directory import ModelDirectoryDataset
from gemma_alignment.hooks.checks import check_parameters, configured_parameters
from gemma_alignment.hooks.store import shown
from gemma_alignment.parameters.places import check_inside, check_pinned
from gemma_alignment.parameters.training import ModelingParameters
from gemma_alignment.redaction import Scrubber, scrub_error, scrubbed
from gemma_alignment.study.parent import ParentRun
from gemma_alignment.study.plan import Plan
from gemma_alignment.study.project import Opened

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
SECRETS = {
    "OPENAI_API_KEY": "sk-planted-openai-0123456789",
    "HF_TOKEN": "hf_planted_token_0123456789",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-0123",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=one;AccountKey=planted-in-a-connection;EndpointSuffix=there",
    "SOME_DATABASE": "postgresql+psycopg2://user:planted-in-address-77@db/mlflow",
    "SOME_SERVER": "https://planted%2Dname%2D9@server/mlflow",
}
IN_A_FILE = "planted-in-a-file-4711"
PLANTED = (
    "sk-planted", "hf_planted", "planted-password", "planted-in-a-connection", "planted-in-address", "planted%2Dname",
    IN_A_FILE,
)  # fmt: skip


@pytest.fixture
def planted(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.pipeline
def test_nothing_that_a_run_writes_holds_a_secret(project, planted, monkeypatch, capfd, caplog):
    """Whole runs, and one whose library puts them into its error; files, store, records, logs and output."""
    (project.root / "conf/test/credentials.yml").write_text(f"store: {{user: me, keys: [{IN_A_FILE}]}}\n")
    with caplog.at_level(logging.DEBUG):
        project.run()
        (project.root / "conf/test/credentials.yml").unlink()
        monkeypatch.setenv("SMALL_FAIL", "grpo:7")
        monkeypatch.setenv("SMALL_FAIL_WITH", " and ".join([*SECRETS.values(), IN_A_FILE]))
        with pytest.raises(ArithmeticError, match=r"\*\*\*"):
            project.run("grpo", seed=7)
    record = project.record("grpo/seed=7")
    assert record.error is not None and "***" in record.error
    assert holding(project.root, PLANTED) == []
    written = capfd.readouterr()
    assert not [word for word in PLANTED if word in written.out + written.err]


def refused(dataset, data):
    """A store whose error names the address and the key that it was asked with."""
    raise OSError(f"{SECRETS['SOME_SERVER']} and planted-name-9 refuse {IN_A_FILE}")


@pytest.mark.pipeline
def test_a_dataset_that_tells_a_secret_tells_it_to_nobody(project, planted, monkeypatch, capfd):
    """Its error comes by no node; Kedro-Viz keeps the errors of whole pipelines that run in order."""
    (project.root / "conf/test/credentials.yml").write_text(f"store: {IN_A_FILE}\n")
    monkeypatch.setattr(ModelDirectoryDataset, "save", refused)
    bootstrap_project(project.root)
    pipelines.configure(project.registry)
    with pytest.raises(OSError), KedroSession.create(project.root, env="test", save_on_close=False) as session:
        session.run(runner=SequentialRunner())
    assert "*** refuse ***" in (project.root / ".viz/kedro_pipeline_events.json").read_text()
    assert "*** refuse ***" in str(project.record("data_processing").error)
    assert holding(project.root, PLANTED) == [("credentials.yml", IN_A_FILE)]
    written = capfd.readouterr()
    assert not [word for word in PLANTED if word in written.out + written.err]


class Spoken(Exception):
    """An error of a library that makes its text from what it keeps."""

    def __init__(self, request, body):
        super().__init__()
        self.request, self.body = request, body

    def __str__(self):
        return f"{self.request} {self.body}"


def test_an_error_that_keeps_a_secret_beside_its_arguments_is_scrubbed_with_its_causes(planted):
    error = Spoken(f"Bearer {SECRETS['HF_TOKEN']}", {"error": {"keys": [SECRETS["OPENAI_API_KEY"]]}})
    error.__cause__ = Spoken(SECRETS["SOME_DATABASE"], 5)
    scrub_error(error)
    assert str(error) == "Bearer *** {'error': {'keys': ['***']}}"
    assert not [word for word in PLANTED if word in str(error.__cause__)]
    assert scrubbed("planted-name-9 planted%2Dname%2D9") == "*** ***"


@pytest.mark.cli
@pytest.mark.pipeline
def test_no_secret_reaches_the_shell_or_the_file_of_tracebacks(project, planted):
    project.run("data_processing", "sft", "reward_model")
    code, output = project.command(
        "kedro", "run", "--pipeline=grpo", "--env=test", SMALL_FAIL="grpo:42", SMALL_FAIL_WITH=SECRETS["HF_TOKEN"]
    )
    assert code == 1
    assert "***" in output and not [word for word in PLANTED if word in output]
    assert holding(project.root, PLANTED) == []


def test_logs_are_scrubbed_with_their_tracebacks(planted, caplog):
    caplog.handler.addFilter(scrubber := Scrubber())
    try:
        try:
            raise ValueError(f"refused: {SECRETS['OPENAI_API_KEY']}")
        except ValueError:
            logging.getLogger("any").exception("with %s", SECRETS["HF_TOKEN"])
    finally:
        caplog.handler.removeFilter(scrubber)
    assert caplog.text.count("***") == 2
    assert "ValueError" in caplog.text and "planted" not in caplog.text


def test_addresses_are_shown_without_their_password(planted):
    assert shown("https://me:planted-in-address-77@host:5000/x") == "https://***@host:5000/x"
    assert shown("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"
    assert scrubbed("host planted-in-address-77") == "host ***"


@pytest.mark.parametrize("password", ["pw1", "hunter2", "p@ss:word", "much-longer-than-eight", "p%2Fw"])
def test_a_password_in_an_address_is_one_however_short(password):
    said = f"API request to http://ann:{password}@127.0.0.1:9/api, and to (postgresql+psycopg2://ann:{password}@db/x)"
    assert scrubbed(said) == "API request to http://ann:***@127.0.0.1:9/api, and to (postgresql+psycopg2://ann:***@db/x)"


def test_other_addresses_stay_as_they_are():
    said = "http://127.0.0.1:5000/a@b, s3://bucket/x:y@z and http://h:80?q=a@b from <file:///a:b@c>"
    assert scrubbed(said) == said


def test_a_study_tells_nobody_the_password_of_a_server_that_went_away(caplog):
    """Its own warning, whoever writes that down."""
    parent = object.__new__(ParentRun)
    parent._warned = False
    with parent._patient():
        raise ConnectionError("API request to http://ann:hunter2@127.0.0.1:9/api/2.0/mlflow failed")
    assert "MLflow does not answer (ConnectionError: API request to http://ann:***@127.0.0.1:9/" in caplog.text


@pytest.fixture
def library():
    """The logger of a library that writes by itself, as MLflow's does, and what it wrote."""
    logger, written = logging.getLogger("any.library"), io.StringIO()
    logger.propagate = False
    logger.addHandler(handler := logging.StreamHandler(written))
    yield logger, written
    logger.removeHandler(handler)


def test_the_logs_of_libraries_tell_no_secret_to_whoever_types_a_command(planted, library, monkeypatch, tmp_path):
    def asked(*words, **more):
        library[0].warning("Retrying with %s", SECRETS["HF_TOKEN"])
        raise click.Abort

    monkeypatch.setattr("gemma_alignment.study.command.planned", asked)
    CliRunner().invoke(cli.study, ["--dry-run"])
    assert library[1].getvalue() == "Retrying with ***\n"


def test_a_library_that_came_with_the_store_tells_a_study_no_secret(planted, library, project):
    Opened.open(project.root, Plan(("grpo",), (1,), {}, "test"))
    library[0].warning("Retrying with %s", SECRETS["HF_TOKEN"])
    assert library[1].getvalue() == "Retrying with ***\n"


def names_in(path):
    """Every module, attribute and keyword that a source names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield f"{node.func.id}()"


def test_no_code_comes_with_data():
    """No pickle and what is made of it, no code from the hub, no evaluation of text; YAML by OmegaConf alone."""
    never = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "trust_remote_code", "eval()", "exec()"}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not never.intersection(names_in(path)), path
        assert not re.search(r"torch\.(load|save)\(|yaml\.(load|unsafe_load|full_load)\(", text), path
        assert "shell=True" not in text and "os.system" not in text, path


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch hacked']", "!!python/name:os.system"])
def test_yaml_makes_no_objects(project, text):
    (project.root / "conf/test/parameters_more.yml").write_text(f"sft:\n  learning_rate: {text}\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        project.run("data_processing")
    assert not (project.root / "hacked").exists()


def test_nothing_listens_to_the_world():
    texts = {path: path.read_text(encoding="utf-8") for path in [*SOURCES, ROOT / "Makefile", ROOT / "README.md"]}
    assert not [path for path, text in texts.items() if "0.0.0.0" in text]  # noqa: S104
    servers = re.findall(r".*(?:kedro viz .*run|kedro mlflow ui).*", texts[ROOT / "Makefile"])
    assert servers and all("--host 127.0.0.1" in line for line in servers)


PATHS = ["data_root", "preferences.path", "judge.labelled_path", "judge.reference_path", "judge.recorded_path"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("path", ["..", "../elsewhere", "data/../../elsewhere", "./../x", "data/\0x"])
def test_a_path_does_not_leave_the_project_unless_it_is_absolute(name, path):
    parameters = configured()
    section, _, key = name.rpartition(".")
    (parameters[section] if section else parameters)[key] = path
    with pytest.raises(ConfigError, match=rf"{key} is .* which leaves the project: give an absolute path"):
        check_parameters(parameters, parameters, {})


def configured():
    from kedro.config import OmegaConfigLoader

    from gemma_alignment.settings import CONFIG_LOADER_ARGS

    return configured_parameters(OmegaConfigLoader(str(ROOT / "conf"), env="base", **CONFIG_LOADER_ARGS))


def test_paths_inside_and_absolute_ones_are_taken():
    check_inside(a="data", b="data/../data/x", c="/elsewhere", d=None, e="..data")


@pytest.mark.parametrize("variant", ["..", "../x", "a/b", "/etc", ".hidden", "a\0"])
def test_a_variant_is_no_path(variant):
    parameters = {**configured(), "variant": variant}
    with pytest.raises(ConfigError, match="variant becomes part of a folder's name"):
        check_parameters(parameters, parameters, {})


def test_hub_revisions_are_commits():
    given = yaml.safe_load((ROOT / "conf/gemma2b/parameters.yml").read_text())
    check_pinned(model=given["modeling"]["revision"], data=given["preferences"]["revision"])
    modeling = configured()["modeling"]
    for revision in ("main", "v1.0", "96988410", "9" * 41):
        with pytest.raises(ConfigError, match="must be a commit hash of the hub"):
            build(ModelingParameters, {**modeling, "base_model": "a/b", "revision": revision}, "modeling")
