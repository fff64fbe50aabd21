"""What every command begins with: the settings, and the API that they point to."""

from typing import TYPE_CHECKING, Any

from fleet.errors import HoldfastError

if TYPE_CHECKING:
    from fleet.cli.client import Api
    from fleet.settings import Settings


class WrongUsage(HoldfastError):
    """The command line makes no sense; ends a command with 2."""

    title = "Wrong usage"


class Misconfigured(WrongUsage):
    title = "Wrong setting"


def load_settings(**overrides: Any) -> "Settings":
    import tomllib

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from fleet.settings import Settings

    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        raise Misconfigured(
            f"{name}: {first['msg']}",
            field=f"HOLDFAST_{name.upper()}",
            hint="change it in the environment or in holdfast.toml",
        ) from None
    except SettingsError as error:
        raise Misconfigured(str(error), hint="maps and lists in the environment are written as JSON") from None
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"holdfast.toml: {error}", hint="correct the file") from None


def connect() -> "Api":
    from fleet.cli.client import api_for

    return api_for(load_settings())
