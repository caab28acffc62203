"""Arms that are finished already: repeating one risks what stands there, and makes nothing new."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.errors import NothingToDo, UserError
from gemma_alignment.hooks.work import Work
from gemma_alignment.stages import CLOSING


def check_left(works: Mapping[str, Work], catalog: Any) -> None:
    """Refuse to train an arm again that is finished under the same parameters and inputs.

    ``overwrite=true`` repeats it; ``resume=true`` leaves its training as it is.

    Raises:
        NothingToDo: when every stage but evaluation and report is finished.
        UserError: when others are not.
    """
    mine = [work for work in works.values() if work.stage.name not in CLOSING]
    repeated = [work for work in mine if work.would_repeat(catalog)]
    if not repeated:
        return
    text = "".join(f"{work.directory} holds a finished run of these parameters and inputs.\n" for work in repeated)
    again = "  --params overwrite=true   to repeat it"
    if all(work in repeated or (not work.stage.is_arm and work.is_current(catalog)) for work in mine):
        closing = ",".join(CLOSING)
        raise NothingToDo(f"{text}Nothing is left to do. If that is not what you want:\n{again}\n"
                          f"  --pipelines={closing}   to evaluate what is there")
    raise UserError(f"{text}Leave it out, or start again with one of:\n"
                    f"  --params resume=true      to leave its training as it is\n{again}")
