"""A model as MLflow loads it: `mlflow.pyfunc.load_model("models:/sovfed-heart/1").predict(data_frame)`.

Nothing is pickled: `MLmodel` names this module as the loader, and what it loads is `model.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any, Final

from sovfed import __version__
from sovfed.federation.errors import DataError
from sovfed.federation.models.rows import made_up_rows, to_table
from sovfed.federation.models.saved import LoadedModel, load_model

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from pandas import DataFrame

FLAVOR: Final = "python_function"
LOADER: Final = "sovfed.federation.models.pyfunc"
MLMODEL: Final = "MLmodel"
EXAMPLE: Final = "input_example.json"
REQUIREMENTS: Final = "requirements.txt"
EXAMPLES: Final = 3


class Predictor:
    """What MLflow calls."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    def predict(self, model_input: DataFrame, params: dict[str, Any] | None = None) -> DataFrame:
        """A data frame of raw columns in, one of predictions out, with the same index. Raises DataError."""
        import pandas

        columns = {str(name): model_input[name].tolist() for name in model_input}
        predictions = self.model.predict_rows(columns)
        listed = {name: list(values) if values.ndim > 1 else values for name, values in predictions.items()}
        return pandas.DataFrame(listed, index=getattr(model_input, "index", None))


def _load_pyfunc(path: str) -> Predictor:
    """Called by MLflow with the folder of the model."""
    return Predictor(load_model(Path(path)))


def write_flavor(folder: Path, model: LoadedModel, run_id: str, artifact_path: str) -> list[Path]:
    """Write what MLflow needs beside the model's own files into `folder`; the files.

    The signature names the inputs and leaves their types to the model's own check, which takes whole numbers where
    MLflow would refuse them; the example is made up.
    """
    from mlflow.models import Model

    example = made_up_rows(model.task.schema, EXAMPLES)
    rows = [list(row) for row in zip(*example.values(), strict=True)]
    example_json = json.dumps({"columns": list(example), "data": rows})
    about = {"artifact_path": EXAMPLE, "type": "dataframe", "pandas_orient": "split"}
    mlmodel = Model(
        artifact_path=artifact_path, run_id=run_id, signature=_signature(model, example),
        saved_input_example_info=about, metadata={"sovfed_task": model.task.name, "sovfed_digest": model.task.digest},
    )  # fmt: skip
    mlmodel.add_flavor(FLAVOR, loader_module=LOADER, env={"virtualenv": REQUIREMENTS}, python_version=python_version())
    mlmodel.save(str(folder / MLMODEL))
    (folder / EXAMPLE).write_text(example_json)
    (folder / REQUIREMENTS).write_text(f"sovfed=={__version__}\n")
    return [folder / MLMODEL, folder / EXAMPLE, folder / REQUIREMENTS]


def check_flavor(path: Path) -> None:
    """Raise DataError unless the `MLmodel` at `path` has MLflow load this module, and nothing else."""
    from mlflow.models import Model

    try:
        flavors = Model.load(str(path)).flavors
    except Exception as error:  # what MLflow raises is its own
        raise DataError(f"{path}: not a model of MLflow") from error
    settings = flavors.get(FLAVOR, {})
    named = set(settings) - {"loader_module", "env", "python_version"}
    if set(flavors) != {FLAVOR} or settings.get("loader_module") != LOADER or named:
        raise DataError(f"{path}: MLflow would load {sorted(flavors)} by another module than {LOADER}")


def _signature(model: LoadedModel, example: dict[str, list[object]]) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    inputs = Schema([ColSpec(AnyType(), name) for name in example])  # type: ignore[no-untyped-call]
    predicted = model.predict(to_table(model.task.schema, example))
    if any(values.ndim > 1 for values in predicted.values()):
        return ModelSignature(inputs)
    kinds = {name: "string" if values.dtype == object else "float" for name, values in predicted.items()}
    return ModelSignature(inputs, Schema([ColSpec(kind, name) for name, kind in kinds.items()]))
