from .checks import Verdict as Verdict
from .checks import check as check
from .checks import parts as parts
from .notebooks import start as start
