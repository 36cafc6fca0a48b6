"""Classification of long rows: the Long Range Arena where it can be made without a download, and stand-ins by name."""

from exlstm.data.long_range.contract import ClassBatch, ClassTask, class_batch
from exlstm.data.long_range.images import CIFAR_GREY, DIGITS
from exlstm.data.long_range.listops import LISTOPS, LISTOPS_SMALL
from exlstm.data.long_range.pathfinder import PATHFINDER
from exlstm.data.long_range.stdlib import STDLIB_MATCH, STDLIB_PACKAGE

__all__ = ["CLASS_TASKS", "ClassBatch", "ClassTask", "class_batch"]

CLASS_TASKS: dict[str, ClassTask] = {
    task.name: task for task in (LISTOPS, LISTOPS_SMALL, PATHFINDER, DIGITS, CIFAR_GREY, STDLIB_PACKAGE, STDLIB_MATCH)
}
