"""Chat templates of the kinds that models have, written for these tests: none is a model's own."""

HERMES = """{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
{{- 'You can call these:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' ~ (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nCall with <tool_call>{"name": …, "arguments": …}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant' }}
{%- if message.content %}{{- '\\n' + message.content }}{% endif %}
{%- for call in message.tool_calls %}
{%- if call.function is defined %}{% set call = call.function %}{% endif %}
{{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) ~ '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""As Qwen2.5 and Hermes."""

THINKING = """{%- set ns = namespace(last=messages | length - 1) %}
{%- for message in messages[::-1] %}
{%- if message.role == 'user' %}{% set ns.last = messages | length - 1 - loop.index0 %}{% break %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- set thought = '' %}
{%- if message.reasoning_content is string %}{% set thought = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' ~ message.role ~ '\\n' }}
{%- if thought and loop.index0 > ns.last %}{{- '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' }}{% endif %}
{{- content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
"""As Qwen3: earlier thoughts are left out, and a variable turns thinking off."""

HEADERS = """{{- bos_token }}
{%- set date = strftime_now('%Y') if strftime_now is defined else '2024' %}
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nYear: ' + date + '\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
"""As Llama 3: a date, and contents without white space around them."""

TURNS = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('After the optional system message, roles must alternate: user/assistant/…') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}
{% else %}{{ raise_exception('Only user and assistant roles are supported: ' ~ message['role']) }}{% endif %}
{% endfor %}
"""
"""As Mistral's first: roles that must take turns, and lines that end where blocks do."""

MARKED = """{% macro turn(role, text) %}<|{{ role }}|>{{ text }}{% endmacro %}
{%- for message in messages -%}
  {%- if message.role == "assistant" -%}
    {%- generation -%}{%- set inner = 1 -%}{{ turn("assistant", message.content) }}<|im_end|>
    {%- endgeneration -%}{{ inner }}
  {%- else -%}
    {{ turn(message.role, message.content | default("nothing")) }}
  {%- endif -%}
  {%- if custom is defined and loop.index > 2 %}{% break %}{% endif %}
{%- endfor -%}
{%- for key, value in dict(a=1, b=custom | default(2)).items() %}{{ key }}={{ value }};{% endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
"""
"""As SmolLM3: marks around what is trained, macros, `dict`."""

INSTRUCTION = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(found=false) -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{%- set ns.found = true -%}{%- endif -%}
{%- endfor -%}
{{bos_token}}{%- if not ns.found -%}
{{'You answer questions about programming.\\n'}}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
{{ message['content'] }}
    {%- else %}
        {%- if message['role'] == 'user' %}
{{'### Instruction:\\n' + message['content'] + '\\n'}}
        {%- else %}
{{'### Response:\\n' + message['content'] + '\\n<|EOT|>\\n'}}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}
{{'### Response:'}}
{% endif %}
"""
"""As DeepSeek-Coder: lines whose ends are written, and a system text of its own."""

DOCUMENTS = """{%- if tools %}{{- '<|tools|>' ~ (tools | tojson(indent=4)) ~ eos_token ~ '\\n' }}{% endif %}
{%- if documents %}
{%- for document in documents %}{{- '<|doc|>' ~ document['title'] ~ '\\n' ~ document['text'] ~ eos_token }}{% endfor %}
{%- endif %}
{%- for message in messages %}
{{- '<|role|>' ~ message['role'] ~ (controls | tojson(sort_keys=True, separators=(',', ':')) if controls is defined) }}
{{- '<|end|>' ~ message['content'] ~ eos_token ~ '\\n' }}
{%- endfor %}
{{- messages | tojson(ensure_ascii=True) }}{{- messages | map(attribute='role') | join(',') | upper }}
{%- if add_generation_prompt %}{{- '<|role|>assistant<|end|>' }}{% endif %}
"""
"""As Granite: documents, and JSON in many forms."""

TEMPLATES = {
    "hermes": HERMES,
    "thinking": THINKING,
    "headers": HEADERS,
    "turns": TURNS,
    "marked": MARKED,
    "instruction": INSTRUCTION,
    "documents": DOCUMENTS,
    "underscore": "{% set ns = namespace(_x=1) %}{{ ns._x }}",
    "class": "{{ dict.__class__ }}{{ messages.__class__.__mro__ }}{{ messages.append(1) }}",
    "keys": "{{ dict.fromkeys('ab', 1) }}{{ none_here }}{{ messages[0].nothing.more }}",
}
