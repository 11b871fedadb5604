'''PanGu-Coder2's prompt format, for training and for inference: the problem in triple quotes, then the code.

    """
    Return the sum of two numbers.
    """
    def add(a, b): …

The paper (section 3.5) has the quotes and that only code is learnt; the line breaks are this project's. Triple
quotes within a problem become single ones, so that they cannot end it.
'''


def format_prompt(problem: str) -> str:
    """What comes before the code; the code begins on a line of its own."""
    quoted = problem.strip().replace('"""', "'''")
    return f'"""\n{quoted}\n"""\n'


def chat_template(start: str, end: str) -> str:
    """The same format as a checkpoint's chat template.

    `start` and `end` are the tokens before every text (mostly none) and after every answer. What is said before
    an answer, a system message included, is one problem.
    """
    return (
        "{%- set turn = namespace(problem='') -%}\n"
        "{%- macro prompt() -%}\n"
        '{{ \'"""\\n\' ~ turn.problem | trim | replace(\'"""\', "\'\'\'") ~ \'\\n"""\\n\' }}\n'
        "{%- endmacro -%}\n"
        + (f"{{{{ {_literal(start)} }}}}\n" if start else "")
        + "{%- for message in messages -%}\n"
        "{%- if message['role'] == 'assistant' -%}\n"
        f"{{{{ prompt() ~ message['content'] ~ {_literal(end)} }}}}\n"
        "{%- set turn.problem = '' -%}\n"
        "{%- else -%}\n"
        "{%- set turn.problem = turn.problem ~ '\\n\\n' ~ message['content'] -%}\n"
        "{%- endif -%}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{ prompt() }}{%- endif -%}"
    )


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
