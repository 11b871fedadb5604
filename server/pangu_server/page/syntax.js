// Which pieces of a text are comments, strings, numbers and keywords. The language is guessed from the text; a text
// that says too little, or is long, has no pieces: plain text is better than wrong colours or slow typing.

export const KINDS = ["comment", "string", "number", "keyword"];
const LONGEST = 20_000; // characters

const NUMBER = String.raw`\b0[xXbBoO][\da-fA-F_]+\b|\b\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?\w*`;
const QUOTED = String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?`;
const END = String.raw`$(?![\s\S])`; // of the text: what is not closed goes on to there
const TRIPLE = String.raw`"""[\s\S]*?(?:"""|${END})|'''[\s\S]*?(?:'''|${END})`;
const BLOCK = String.raw`\/\*[\s\S]*?(?:\*\/|${END})`;
const SLASHES = String.raw`\/\/.*|${BLOCK}`;
const C_WORDS = `break case char const continue default do double else enum extern float for goto if int long return short
  signed sizeof static struct switch typedef union unsigned void volatile while bool true false`;

// Signs tell a language, and each one that is found counts; then comments, strings and keywords. No pattern may look
// far ahead from many places: a text of blank lines or of one word, too, is read in a time that grows with its length.
const LANGUAGES = [
  language(
    [/^[ \t]*(async )?def \w+\(/m, /^[ \t]*(class \w+.*|else|try|(if|elif|for|while|with|except)\b.*):\s*(#.*)?$/m,
      /^(import [\w., ]+|from [\w.]+ import .+)$/m, /\b(self|None|elif|lambda \w+:)/, /"""/],
    String.raw`#.*`,
    String.raw`(?:\b[rRbBfFuU]{1,2})?(?:${TRIPLE}|${QUOTED})`,
    `False None True and as assert async await break class continue def del elif else except finally for from global if
     import in is lambda match nonlocal not or pass raise return try while with yield`,
  ),
  language(
    [/^[ \t]*(export |async )*function\*? ?\w*\(/m, /\b(const|let) [\w{[][^=\n]{0,80}=/, /=> ?[{(\w]/, /===|!==/,
      /^[ \t]*(import|export) .*['"];?$/m, /\bconsole\.log\(/, /^[ \t]*(export )?interface \w+ \{/m],
    SLASHES,
    "`(?:\\\\[\\s\\S]|[^`\\\\])*`?|" + QUOTED,
    `async await break case catch class const continue debugger default delete do else export extends false finally for
     from function if implements import in instanceof interface let new null of return static super switch this throw
     true try type typeof undefined var void while yield`,
  ),
  language(
    [/^[ \t]*#\s*(include|define|ifn?def|pragma)\b/m, /^[ \t]*(static |inline |unsigned )*(int|void|char|double|float) \*?\w+\(/m,
      /\bstd::\w/, /^[ \t]*template\s*</m, /\w->\w+[;,) (]/],
    SLASHES,
    QUOTED,
    `${C_WORDS} auto catch class constexpr delete explicit friend inline namespace new noexcept nullptr operator override
     private protected public template this throw try typename using virtual`,
  ),
  language(
    [/^[ \t]*(public|private|protected|internal) .*[({;]$/m, /^(package|import|using) [\w.*]+;$/m, /\bString(\[\])? \w+/,
      /@Override|\bSystem\.out\b|\bConsole\.Write/],
    SLASHES,
    QUOTED,
    `${C_WORDS} abstract boolean byte catch class extends final finally foreach implements import in instanceof interface
     internal namespace new null out override package private protected public readonly record ref string super this
     throw throws try using var virtual`,
  ),
  language(
    [/^package \w+$/m, /^func (\(\w+ \*?\w+\) )?\w+\(/m, /\w :=/, /^import (\(|"[\w\/.]+")$/m, /\berr != nil\b/],
    SLASHES,
    "`[^`]*`?|" + QUOTED,
    `break case chan const continue default defer else fallthrough false for func go goto if import interface map nil
     package range return select struct switch true type var`,
  ),
  language(
    [/^[ \t]*(pub )?(async )?fn \w+/m, /\blet mut \w/, /^[ \t]*(pub )?(impl|mod|trait|enum)\b.*\{$/m, /^use [\w:{}, ]+;$/m,
      /\b(println|vec|format)!/],
    SLASHES,
    String.raw`"(?:\\[\s\S]|[^"\\])*"?|'(?:\\.|[^'\\\n])'`, // a single quote alone is a lifetime
    `as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut
     pub ref return self Self static struct super trait true type unsafe use where while`,
  ),
  language(
    [/^#!.*sh\b/, /^[ \t]*(fi|done|esac)\s*$/m, /^[ \t]*if \[\[? .*\]; then$/m, /^[ \t]*(export )?\w+=\$\(/m],
    String.raw`(?<![^\s;])#.*`,
    String.raw`"(?:\\[\s\S]|[^"\\])*"?|'[^']*'?`,
    "case do done elif else esac export fi for function if in local return set then unset until while",
  ),
  language(
    [/^[ \t]*SELECT\b[^;]{1,500}?\bFROM\b/im, /^[ \t]*(CREATE|ALTER|DROP) (TABLE|INDEX|VIEW)\b/im, /^[ \t]*INSERT INTO\b/im,
      /^[ \t]*UPDATE \w+ SET\b/im],
    String.raw`--.*|${BLOCK}`,
    String.raw`'(?:''|[^'])*'?`,
    `add all alter and as asc between by case create default delete desc distinct drop else end exists foreign from group
     having in index inner insert into is join key left limit not null on or order outer primary references right
     select set table then union unique update values view when where with`,
    { ignoresCase: true },
  ),
];

/** [kind, start, end] of each piece of `text` that has a kind, in order; none when the language is not clear. */
export function pieces(text) {
  const found = guess(text);
  if (!found) return [];
  const result = [];
  for (const match of text.matchAll(found.pattern)) {
    const { word, ...kinds } = match.groups;
    const known = word && found.words.has(found.ignoresCase ? word.toLowerCase() : word);
    const kind = word ? known && "keyword" : KINDS.find((name) => kinds[name] !== undefined);
    if (kind) result.push([kind, match.index, match.index + match[0].length]);
  }
  return result;
}

/** The language with the most signs, unless there are none or two have as many. */
function guess(text) {
  if (text.length > LONGEST) return null;
  const ranked = LANGUAGES.map((one) => [one.signs.filter((sign) => sign.test(text)).length, one]);
  ranked.sort(([a], [b]) => b - a);
  return ranked[0][0] > ranked[1][0] ? ranked[0][1] : null;
}

function language(signs, comment, string, words, { ignoresCase = false } = {}) {
  const source = `(?<comment>${comment})|(?<string>${string})|(?<number>${NUMBER})|(?<word>[A-Za-z_]\\w*)`;
  return { signs, pattern: new RegExp(source, "gm"), words: new Set(words.split(/\s+/)), ignoresCase };
}
