"""MLflow loads a model by our loader alone, and predicts from a data frame as people have it."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest
from tests.federation.models.made_tasks import RUN, TASKS, model_of
from tests.federation.models.test_outputs import ROWS

from sovfed.federation.errors import DataError
from sovfed.federation.models.pyfunc import check_flavor, write_flavor
from sovfed.federation.models.saved import load_model, save_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # MLflow's own
    pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning"),
]


def written(folder: Path, name: str) -> Path:
    save_model(folder, TASKS[name], *model_of(TASKS[name]), RUN)
    write_flavor(folder, load_model(folder), "0" * 32, "model")
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_mlflow_predicts_what_the_model_predicts(tmp_path: Path, name: str) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(str(written(tmp_path, name)))
    expected = load_model(tmp_path).predict_rows(ROWS)
    frame = pandas.DataFrame(ROWS, index=[7, 3])
    frame["age"] = [50, 100]  # whole numbers, which MLflow would refuse for a declared double
    found = model.predict(frame)
    assert list(found.index) == [7, 3]
    assert {key: values.tolist() for key, values in expected.items()} == {key: found[key].tolist() for key in found}
    assert model.metadata.signature.outputs.input_names() == list(found)
    assert len(model.predict(model.input_example)) == 3


def test_a_missing_column_is_told(tmp_path: Path) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(str(written(tmp_path, "binary")))
    with pytest.raises(mlflow.MlflowException, match="age"):
        model.predict(pandas.DataFrame(ROWS).drop(columns="age"))


@pytest.mark.parametrize(
    "change",
    [
        ("sovfed.federation.models.pyfunc", "mlflow.sklearn"),
        ("    loader_module", "    code: code\n    loader_module"),
        ("python_function:", "sklearn: {}\n  python_function:"),
    ],
)
def test_a_description_that_would_load_something_else_is_noticed(tmp_path: Path, change: tuple[str, str]) -> None:
    path = written(tmp_path, "binary") / "MLmodel"
    check_flavor(path)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(DataError, match="another module"):
        check_flavor(path)
