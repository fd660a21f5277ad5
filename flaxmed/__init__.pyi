from flaxmed.data import list_datasets as list_datasets
from flaxmed.data import load_dataset as load_dataset
from flaxmed.evaluation import Comparison as Comparison
from flaxmed.evaluation import Report as Report
from flaxmed.evaluation import compare as compare
from flaxmed.evaluation import evaluate as evaluate
from flaxmed.inference import predict as predict
from flaxmed.models import DenseNet121 as DenseNet121
from flaxmed.models import ResNet18 as ResNet18
from flaxmed.models import Xception as Xception
from flaxmed.models import create_model as create_model
from flaxmed.models import list_models as list_models
from flaxmed.models import list_variants as list_variants
from flaxmed.models.weights import convert_weights as convert_weights
from flaxmed.models.weights import from_pretrained as from_pretrained
from flaxmed.models.weights import list_weights as list_weights
from flaxmed.models.weights import load_weights as load_weights
from flaxmed.models.weights import open_weights as open_weights
from flaxmed.models.weights import save_weights as save_weights
from flaxmed.publish import push_to_hub as push_to_hub
from flaxmed.publish import save_pretrained as save_pretrained
from flaxmed.training import Run as Run
from flaxmed.training import TrainConfig as TrainConfig
from flaxmed.training import load_model as load_model
from flaxmed.training import train as train
from flaxmed.training import train_seeds as train_seeds
from flaxmed.types import Dataset as Dataset
from flaxmed.types import DatasetInfo as DatasetInfo
from flaxmed.types import InputError as InputError
from flaxmed.types import Predictions as Predictions
from flaxmed.types import Preprocessing as Preprocessing
from flaxmed.types import RunError as RunError
from flaxmed.types import Split as Split
from flaxmed.types import Task as Task

__version__: str
__all__: list[str]
