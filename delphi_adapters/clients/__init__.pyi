"""The public names of the clients, and where each is: `__init__` reads this."""

from .anthropic_client import AnthropicClient as AnthropicClient
from .api_client import ApiClient as ApiClient
from .api_client import ApiConfig as ApiConfig
from .api_client import MissingAPIKey as MissingAPIKey
from .api_client import RecordedResponse as RecordedResponse
from .api_client import RequestFailed as RequestFailed
from .batches import BatchAnthropicClient as BatchAnthropicClient
from .ledger import BudgetExceeded as BudgetExceeded
from .ledger import Estimate as Estimate
from .ledger import Ledger as Ledger
from .ledger import Price as Price
from .ledger import RunStopped as RunStopped
from .ledger import UnknownPrice as UnknownPrice
from .ledger import load_prices as load_prices
from .openai_client import OpenAIClient as OpenAIClient
from .records import RequestRecord as RequestRecord
from .records import Usage as Usage
from .requests import Request as Request
from .requests import UnsupportedArgument as UnsupportedArgument
from .results import ResultStore as ResultStore
from .retries import RetryPolicy as RetryPolicy
from .transformers_client import PromptTooLong as PromptTooLong
from .transformers_client import TransformersClient as TransformersClient
