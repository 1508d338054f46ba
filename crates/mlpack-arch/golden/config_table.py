"""Prints the `[config.<model_type>]` tables of an architecture description, from the config classes of transformers.

    python config_table.py MODEL_TYPE...

Fields, types, defaults and the rope theta are read from the class. What `__post_init__` makes of a null (`or`), and what
the class checks, is to be added by hand.
"""
import dataclasses
import sys
import types
import typing

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NAMES = {int: "int", float: "float", bool: "bool", str: "str", type(None): "null", dict: "dict"}


def words(annotation):
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return sorted({word for argument in typing.get_args(annotation) for word in words(argument)}, key=ORDER.index)
    if origin is list:
        return [f"{NAMES[typing.get_args(annotation)[0]]}_list"]
    if origin is dict or annotation not in NAMES:
        return ["dict"]
    return [NAMES[annotation]]


ORDER = ["int", "float", "bool", "str", "int_list", "float_list", "str_list", "dict", "null"]


def main():
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    for model_type in sys.argv[1:]:
        config = CONFIG_MAPPING[model_type]
        fields = dataclasses.fields(config)
        own = [f for f in fields if f.name not in common or f.name in config.__dict__.get("__annotations__", {})]
        print(f"[config.{model_type}]")
        if any(f.name == "rope_parameters" for f in own):
            theta = getattr(config, "default_theta", 10000.0)
            print(f"rope_theta = {theta if isinstance(theta, dict) else float(theta)}")
        aliases = {alias: name for alias, name in getattr(config, "attribute_map", {}).items()}
        if aliases:
            print("aliases = { " + ", ".join(f'{alias} = "{name}"' for alias, name in aliases.items()) + " }")
        print(f"\n[config.{model_type}.fields]")
        hints = {f.name: f.type for f in own}
        for f in own:
            default = "" if f.default in (None, dataclasses.MISSING) else f", default = {toml(f.default)}"
            print(f"{f.name} = {{ type = [{', '.join(toml(word) for word in words(hints[f.name]))}]{default} }}")
        print()


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


main()
