"""Renders the chat templates beside this file with Jinja2, set up as transformers sets it up, into golden.json.

A conversation that ends with the assistant is one to be continued: the messages before it with the generation prompt,
then its text. Run with the tool versions named in README.md: `python3 make.py`.
"""

import json
import pathlib

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
FIXTURE = HERE / "../../../../fixtures/legal-qa/kjv-llama/chat_template.jinja"
TOKENS = {
    "llama-3": ("<|begin_of_text|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<eos>"),
    "gemma-3": ("<bos>", "<eos>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
}
KINDS = ["u", "uau", "uaua", "su", "suau", "sua"]
ROLES = {"s": "system", "u": "user", "a": "assistant"}


def raise_exception(message):
    raise ValueError(message)


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = raise_exception
    golden = {}
    sources = {path.stem: path for path in sorted(HERE.glob("*.jinja"))} | {"legal-qa": FIXTURE}
    for name, path in sorted(sources.items()):
        template = environment.from_string(path.read_text(encoding="utf-8"))
        bos, eos = TOKENS.get(name, ("<s>", "</s>"))
        golden[name] = []
        for kinds in KINDS:
            messages = [
                {"role": ROLES[kind], "content": f'{i}. "q" <b>&amp;</b> {{{{ .System }}}} \\n\n\n\té 日本 {i}!'}
                for i, kind in enumerate(kinds)
            ]
            asked, text = (messages[:-1], messages[-1]["content"]) if kinds.endswith("a") else (messages, "")
            try:
                prompt = template.render(
                    messages=asked, add_generation_prompt=True, bos_token=bos, eos_token=eos, tools=None, documents=None
                )
            except ValueError:
                continue
            golden[name].append({"messages": messages, "prompt": prompt + text})
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (HERE / "golden.json").write_text(text + "\n", encoding="utf-8")


main()
