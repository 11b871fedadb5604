"""From a model's answer to a program. No answer is dropped, and none is repaired but by these rules.

The problem's setup is not part of the program: it comes before it when the program runs (`runnable`).

**Completion** (`completion_program`): the prompt goes on with the answer. The answer ends before the first of
`COMPLETION_STOPS`: a line that begins in the first column with `class`, `def`, `#`, `if`, `print` (the five of Chen et
al. 2021, section 2.1) or with `@` or a fence (added by bigcode-evaluation-harness, `tasks/humaneval.py`).

**Infilling** (`infilling_program`): prompt, the answer's first line, suffix.

**Answer** (`answer_program`), for a model that writes prose, fences and examples:

1. The code is the first fenced block that defines what is asked for; if none does, the first block. A fence that is
   not closed ends with the text. Text before the first fence is a block too if it defines what is asked for: the
   prompt may have opened the fence. Text without a fence is cut to its code: from its first line that is code to the
   end, or to the last line in the first column before which it parses.
2. Of code that defines what is asked for, all that comes before the definition stays (a table filled in a loop),
   except asserts. Of what comes after it, only `import`, `def` and `class` stay, and assignments that something which
   stays reads: the answer's own tests, prints and examples are not judged. What stays are whole lines, behind the
   prompt's imports and helpers.
3. Code that does not define it is the body: it follows the prompt, indented if it is not. Words have no function whose
   body it could be: there it goes on as it is.
4. Code that does not parse goes on as it is, behind the prompt's imports: it will fail as a syntax error.
"""

import ast
import re
import textwrap
import warnings

from pangu_training.evaluation.problem import Problem

COMPLETION_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\n```")
INFILLING_STOPS = ("\n",)

# An info string holds no backtick: ```this``` is prose.
FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^`]*)")
CODE_LINE = re.compile(r"(async )?def \w+\(|class \w+[:(]|import \w[\w., ]*$|from [\w.]+ import|@\w+")
KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)


def completion_program(problem: Problem, prompt: str, answer: str) -> str:
    """The program that `answer` makes of `prompt`, whose last line it continues."""
    text = _unix_lines(answer)
    end = min((text.find(stop) for stop in COMPLETION_STOPS if stop in text), default=len(text))
    return f"{prompt}{text[:end]}\n"


def infilling_program(problem: Problem, answer: str) -> str:
    """The program with the first line of `answer` in its hole."""
    line, _, _ = _unix_lines(answer).partition("\n")
    return f"{problem.prompt}{line}\n{problem.suffix}"


def answer_program(problem: Problem, answer: str) -> str:
    """The program in a chat model's `answer`."""
    code = code_of(problem, answer)
    if not _defines(problem, code):
        return f"{code}\n" if problem.words is not None else _continued(problem.prompt, code)
    tree = parse(code)
    if tree is not None:
        code = "\n".join(_definitions(problem, code, tree))
    return _behind(preamble(problem), f"{code}\n")


def runnable(problem: Problem, program: str) -> str:
    """`program` as it runs: behind the problem's setup, which no model is shown or asked to write."""
    return _behind(problem.setup, program)


def code_of(problem: Problem, answer: str) -> str:
    """The code in `answer` by rule 1."""
    before, blocks = _fenced(_unix_lines(answer))
    code = _bare_code(before)
    if not blocks or _defines(problem, code):
        return code
    return next((block for block in blocks if _defines(problem, block)), blocks[0])


def preamble(problem: Problem) -> str:
    """What the prompt has before the definition that it asks for: imports, helpers."""
    definition = re.search(rf"^(def|class)\s+{re.escape(problem.target)}\b", problem.prompt, re.MULTILINE)
    return problem.prompt[: definition.start()] if definition else ""


def parse(code: str) -> ast.Module | None:
    """The syntax tree, None where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. an invalid escape in the model's code
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
            return None


def _behind(source: str, program: str) -> str:
    """`source`, then `program`; an import from `__future__` must be a file's first statement and stays before."""
    statements = (parse(program) or ast.Module([], [])).body
    first = max((node.end_lineno or 0 for node in statements if _is_future(node)), default=0)
    lines = program.split("\n")
    return "\n".join([*lines[:first], *([source] if source else []), *lines[first:]])


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _defines(problem: Problem, code: str) -> bool:
    pattern = rf"^(async\s+def|def|class)\s+{re.escape(problem.target)}\b|^{re.escape(problem.target)}\s*="
    return re.search(pattern, code, re.MULTILINE) is not None


def _fenced(text: str) -> tuple[str, list[str]]:
    """The text before the first fence, and the blocks. A fence with a language opens a block even inside one."""
    before: list[str] = []
    blocks: list[list[str]] = []
    current, opening = before, ""
    for line in text.split("\n"):
        fence = FENCE.fullmatch(line)
        if fence and (not opening or fence[2].strip()):
            opening, current = fence[1], []
            blocks.append(current)
        elif fence and fence[1].startswith(opening):
            opening, current = "", []
        else:
            current.append(line)
    return "\n".join(before), [textwrap.dedent("\n".join(block)).strip("\n") for block in blocks]


def _bare_code(text: str) -> str:
    """The code in text without a fence; the text as it is where there is none, or none that parses."""
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if CODE_LINE.match(line)), None)
    if start is None:
        return text
    ends = [number for number in range(start + 1, len(lines)) if lines[number][:1].strip()]
    for end in (len(lines), *reversed(ends)):
        code = "\n".join(lines[start:end])
        if parse(code) is not None:
            return code
    return text


def _continued(prompt: str, code: str) -> str:
    """`prompt` with `code` as the body of its last function."""
    if not code[:1].isspace():
        margins = re.findall(r"^([ \t]*)def ", prompt, re.MULTILINE)
        code = textwrap.indent(code, (margins[-1] if margins else "") + "    ")
    return f"{prompt}{code}\n"


def _definitions(problem: Problem, code: str, tree: ast.Module) -> list[str]:
    """The lines of `code` that stay by rule 2."""
    definition = next((node.lineno for node in tree.body if problem.target in _names_defined(node)), 0)
    kept = {
        node
        for node in tree.body
        if isinstance(node, KEPT) or (node.lineno < definition and not isinstance(node, ast.Assert))
    }
    read = {problem.target}.union(*map(_names_read, kept))
    for node in reversed(tree.body):
        if isinstance(node, ASSIGNMENTS) and read & _names_defined(node):
            kept.add(node)
            read |= _names_read(node)
    lines, end = code.split("\n"), 0
    stay: dict[int, str] = {}  # by line number: two statements can share a line
    for node in tree.body:
        # from the end of the statement before: comments and decorators come along
        first, end = min(end, node.lineno - 1), node.end_lineno or node.lineno
        if node in kept:
            stay.update({line: lines[line] for line in range(first, end)})
    return list(stay.values())


def _names_read(node: ast.AST) -> set[str]:
    return {
        item.id for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Load)
    }


def _names_defined(node: ast.stmt) -> set[str]:
    """Names that a definition or an assignment makes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    return {
        item.id for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)
    }
