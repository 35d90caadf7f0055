"""A sentence for each field of the request bodies, for the API's description.

Keys are the name of a field in every object, or OBJECT.FIELD where its meaning depends on the object. Types, ranges and
plain defaults are not repeated here: they come from the request models.
"""

from collections.abc import Mapping

_SERVER_DEFAULT = "If absent: the checkpoint's `generation_config.json`, else"
_EMBEDDING = ("EmbeddingRequest", "RerankRequest", "ScoreRequest")
_FIRST_TOKENS = (
    "Keep only this many of the first tokens of each text; -1: as many as the model takes. If absent, a text that is "
    "too long is a 400."
)

SAMPLING: Mapping[str, str] = {
    "temperature": f"Divides the logits before a token is drawn; 0 always takes the likeliest. {_SERVER_DEFAULT} 1.",
    "top_p": f"Draws among the likeliest tokens whose probabilities add up to this share. {_SERVER_DEFAULT} 1 (all).",
    "top_k": f"Draws among this many of the likeliest tokens; 0 and -1 mean all. {_SERVER_DEFAULT} all.",
    "min_p": f"Leaves out tokens less likely than this share of the likeliest one. {_SERVER_DEFAULT} 0.",
    "frequency_penalty": "Subtracted from a token's logit for each time that the answer already has it.",
    "presence_penalty": "Subtracted once from the logit of each token that the answer already has.",
    "repetition_penalty": f"Divides positive logits, and multiplies negative ones, of tokens that prompt or answer "
    f"already have. {_SERVER_DEFAULT} 1 (no effect).",
    "repeat_penalty": "What llama.cpp and Ollama call `repetition_penalty`: send one of them. If absent: that field.",
    "seed": "Start of the random numbers. Equal requests with equal seeds give equal tokens. If absent: drawn; the "
    "reply names it.",
    "n": "Number of answers to each prompt. They differ only if temperature is above 0.",
    "logit_bias": "Added to the logits of token ids: an object from id (as text) to number. -100 forbids a token.",
    "allowed_token_ids": "The only token ids that may be generated. If absent: all.",
    "bad_words": "Texts that the answer must not have, as the tokenizer spells them with and without a space before.",
}

LENGTH_AND_END: Mapping[str, str] = {
    "max_tokens": "Largest number of tokens to generate. If absent, or -1: as many as the context has room for.",
    "CompletionRequest.max_tokens": "Largest number of tokens to generate. -1: as many as the context has room for. "
    "0 is allowed with `echo`.",
    "MessagesRequest.max_tokens": "Largest number of tokens to generate.",
    "max_completion_tokens": "OpenAI's newer name for `max_tokens`: send one of them. If absent, or -1: `max_tokens` "
    "applies.",
    "max_output_tokens": "Largest number of tokens to generate. If absent: as many as the context has room for.",
    "min_tokens": "Number of tokens before which neither the end token nor a stop token may come.",
    "stop": "Text or texts that end the answer. The answer does not include them.",
    "stop_sequences": "Texts that end the answer. The answer does not include them.",
    "stop_token_ids": "Token ids that end the answer, besides the model's own end token.",
    "include_stop_str_in_output": "Keep the text of `stop` at the end of the answer.",
    "ignore_eos": "Continue after the model's end token, up to the limit. For measurements.",
    "truncate_prompt_tokens": "Keep only this many tokens of the prompt; -1: as many as leave room for the answer. If "
    "absent, a longer one than fits is a 400.",
    **dict.fromkeys((f"{name}.truncate_prompt_tokens" for name in _EMBEDDING), _FIRST_TOKENS),
    "truncation_side": 'The end that `truncate_prompt_tokens` cuts off. If absent: "left", so the last tokens stay.',
    "truncation": '"auto" leaves out as few of the oldest turns as the context requires; "disabled" answers 400.',
    "timeout_s": "Seconds for the whole request, from its arrival. After that it ends with 504. If absent: no limit.",
    "queue_timeout_s": "Seconds that the request may wait for its first step. After that it ends with 503. If absent: "
    "no limit.",
}

REPLY: Mapping[str, str] = {
    "model": "A served name, as GET /v1/models lists them. If absent: the served model.",
    "stream": "Send the answer in parts as it is generated, as server-sent events.",
    "stream_options": "What else the stream has. Needs `stream`.",
    "include_usage": "Send the token counts in a last event.",
    "continuous_usage_stats": "Send the token counts of this moment in every event.",
    "echo": "Put the prompt in front of the answer. With `max_tokens` 0 and `logprobs` it scores the prompt.",
    "best_of": "Accepted if it equals `n`: this server generates no answers that it discards. If absent: `n`.",
    "logprobs": "Send the log probability of each generated token.",
    "CompletionRequest.logprobs": "Send the log probabilities of each token and of this many of the likeliest ones. If "
    "absent: none.",
    "top_logprobs": "Send those of this many of the likeliest tokens too. Needs `logprobs`. If absent: 0.",
    "ResponsesRequest.top_logprobs": "Send those of this many of the likeliest tokens too. Needs "
    "`message.output_text.logprobs` in `include`. If absent: 0.",
    "prompt_logprobs": "Send the log probabilities of the prompt's tokens, and of this many of the likeliest ones at "
    "each place. Not streamed. If absent: none.",
    "include": "Parts to add to the reply: `message.output_text.logprobs`. Others have no effect.",
    "skip_special_tokens": "Leave control tokens, such as the end token, out of the text.",
    "return_token_ids": "Send the token ids of prompt and answer beside the text.",
    "return_token_strs": "Send the text of each token beside its id.",
    "user": "Your name for the end user. It stands in the log and has no other effect.",
    "metadata": "Pairs of texts that the reply repeats.",
    "MessagesRequest.metadata": "`user_id`: your name for the end user, for the log.",
    "user_id": "Your name for the end user. It stands in the log and has no other effect.",
}

SCHEDULING_AND_EXPERTS: Mapping[str, str] = {
    "priority": "Order among the requests of one API key; lower numbers first. If absent: 0.",
    "cache_salt": "Keeps the prefix cache of this request apart from requests with another text here.",
    "experts_per_token": "Number of experts that compute each token. Fewer are faster; any number other than the "
    "model's own costs quality. If absent: the server's --experts-per-token, else the model's own.",
    "expert_mask": "[layers][experts]: false switches an expert off. Each layer keeps as many as a token takes.",
    "expert_usage": "Send in `usage` how many tokens each expert computed, as [layers][experts].",
    "expert_routing": "Send the expert ids of each token, strongest first, as [token][layer][k]. With `echo` "
    "and `max_tokens` 0 these are the prompt's tokens.",
    "gate_logits": "Send the gate's logits, [token][layer][experts], and the chosen experts' weights, "
    "[token][layer][k]. Steps with such a request are slower.",
    "prediction": "Text that the answer will resemble. It may speed up the answer and never changes it.",
}

FORMATS: Mapping[str, str] = {
    "response_format": "Form of the answer: text, any JSON object, or JSON by a schema.",
    "structured_outputs": "Form of the answer: one of a JSON schema, an expression, a list of texts, and a grammar.",
    "guided_json": "The name for `structured_outputs.json` in vLLM before 0.12.",
    "guided_regex": "The name for `structured_outputs.regex` in vLLM before 0.12.",
    "guided_choice": "The name for `structured_outputs.choice` in vLLM before 0.12.",
    "guided_grammar": "The name for `structured_outputs.grammar` in vLLM before 0.12.",
    "json_schema": "The name for `structured_outputs.json` in llama.cpp and SGLang.",
    "grammar": "The name for `structured_outputs.grammar` in llama.cpp.",
    "regex": "The name for `structured_outputs.regex` in SGLang.",
    "ebnf": "The name for `structured_outputs.grammar` in SGLang.",
    "StructuredOutputs.json": "A JSON schema, as an object or its text. The answer is JSON that follows it.",
    "StructuredOutputs.regex": "A regular expression that matches the whole answer.",
    "StructuredOutputs.choice": "The texts of which the answer is one.",
    "StructuredOutputs.grammar": "A grammar in Lark's notation or in GBNF.",
    "ResponseFormat.type": "`text`, `json_object` (any object) or `json_schema`.",
    "ResponseFormat.json_schema": "The schema in OpenAI's wrapper. Required by the type `json_schema`.",
    "ResponseFormat.schema": "The schema without a wrapper, as llama.cpp and Together take it.",
    "JsonSchemaFormat.name": "Your name for the schema. It has no effect.",
    "JsonSchemaFormat.description": "Your description of the schema. It has no effect.",
    "JsonSchemaFormat.schema": "The JSON schema that the answer follows.",
    "JsonSchemaFormat.strict": "Accepted and without effect: the answer always follows the schema.",
    "TextFormat.type": "`text`, `json_object` (any object) or `json_schema`.",
    "TextFormat.name": "Your name for the schema. It has no effect.",
    "TextFormat.description": "Your description of the schema. It has no effect.",
    "TextFormat.schema": "The JSON schema that the answer follows. Required by the type `json_schema`.",
    "TextFormat.strict": "Accepted and without effect: the answer always follows the schema.",
    "TextConfig.format": "Form of the answer.",
    "ResponsesRequest.text": "Options of the answer's text: its `format`.",
    "OutputFormat.type": "`json_schema` is the only form.",
    "OutputFormat.schema": "The JSON schema that the answer follows.",
    "OutputConfig.format": "Form of the answer.",
    "output_config": "Options of the answer: its `format`.",
    "output_format": "The older name of `output_config.format`.",
}

PROMPTS: Mapping[str, str] = {
    "prompt": "The text to continue, a list of token ids, or a list of either.",
    "TokenizeRequest.prompt": "The text to tokenize. Send either this or `messages`.",
    "add_special_tokens": "Put the control tokens that the tokenizer's files ask for around the text.",
    "messages": "The conversation, oldest message first.",
    "TokenizeRequest.messages": "The conversation to render and tokenize. Send either this or `prompt`.",
    "add_generation_prompt": "End the rendered conversation where the assistant's answer begins. If absent: true, "
    "unless the last message is continued.",
    "continue_final_message": "Continue the last message, which must be the assistant's, instead of answering it.",
    "chat_template_kwargs": "Further arguments of the chat template.",
    "date_string": "Date that the template writes into the prompt.",
    "enable_thinking": "Passed to the template. The model itself has no reasoning.",
    "reasoning_effort": "Passed to the template. The model itself has no reasoning.",
    "ChatMessage.role": "Who wrote the message. `developer` is OpenAI's newer name for `system`.",
    "ChatMessage.content": "The text, or its parts.",
    "ChatMessage.tool_calls": "The calls that the assistant made in this message.",
    "ChatMessage.tool_call_id": "The id of the call whose result this is. For the role `tool`.",
    "ChatMessage.prefix": "Continue this message, which must be the last and the assistant's (Mistral's field).",
    "TextPart.type": "`text` is the only kind of part.",
    "TextPart.text": "The part's text.",
    "PredictedPart.type": "`text` is the only kind of part.",
    "PredictedPart.text": "The part's text.",
    "Prediction.type": "`content` is the only kind of prediction.",
    "Prediction.content": "The predicted text, or its parts.",
    "instructions": "A system message in front of the conversation.",
    "system": "The system text in front of the conversation.",
    "ResponsesRequest.input": "A text of the user, or the items of the conversation, oldest first.",
    "MessageItem.type": "`message`, or absent.",
    "MessageItem.role": "Who wrote the message. `developer` is OpenAI's newer name for `system`.",
    "MessageItem.content": "The text, or its parts.",
    "Part.type": "`input_text` of the user or `output_text` of the model.",
    "Part.text": "The part's text.",
    "Turn.role": "Who wrote the turn.",
    "Turn.content": "The text, or its blocks.",
    "TextBlock.type": "A block of text.",
    "TextBlock.text": "The block's text.",
    "ThinkingBlock.type": "Reasoning of another model, which is left out of the prompt.",
    "ReasoningItem.type": "Reasoning of another model, which is left out of the prompt.",
}

TOOLS: Mapping[str, str] = {
    "tools": "The functions that the model may call.",
    "tool_choice": "Whether the model may or must call a function, and which: `none`, `auto`, `required`, or an object "
    "that names functions. If absent: `auto` if there are tools.",
    "parallel_tool_calls": "Allow several calls in one answer.",
    "strict": "Answer 400 for parts of the schema that cannot be enforced, instead of leaving them out.",
    "ChatTool.type": "`function` is the only kind of tool.",
    "ChatTool.function": "The function.",
    "FunctionDefinition.name": "The function's name.",
    "FunctionDefinition.description": "What the function does, for the model.",
    "FunctionDefinition.parameters": "JSON schema of the arguments, an object. If absent: no arguments.",
    "NamedFunction.name": "The function's name.",
    "AllowedTool.type": "`function` is the only kind of tool.",
    "AllowedTool.function": "The function.",
    "AllowedTools.mode": "`auto`: the model may call one; `required`: it must.",
    "AllowedTools.tools": "The functions among which the model chooses.",
    "ChatToolChoice.type": "`none`, `auto`, `required`, `function` or `allowed_tools`.",
    "ChatToolChoice.function": "The function that must be called. For the type `function`.",
    "ChatToolChoice.allowed_tools": "The functions that may be called. For the type `allowed_tools`.",
    "CalledFunction.name": "The function's name.",
    "CalledFunction.arguments": "The arguments: a JSON object, or its text.",
    "ToolCall.id": "The call's id, which the message with its result repeats.",
    "ToolCall.type": "`function` is the only kind of call.",
    "ToolCall.function": "The function and its arguments.",
    "MessagesTool.type": "`custom`, or one of Anthropic's own tools, which this server leaves out.",
    "MessagesTool.name": "The function's name.",
    "MessagesTool.description": "What the function does, for the model.",
    "MessagesTool.input_schema": "JSON schema of the arguments, an object.",
    "MessagesToolChoice.type": "`auto`, `any` (the model must call one), `none` or `tool` (a named one).",
    "MessagesToolChoice.name": "The function that must be called. For the type `tool`.",
    "MessagesToolChoice.disable_parallel_tool_use": "Allow one call per answer only.",
    "ToolUseBlock.type": "A call of the assistant.",
    "ToolUseBlock.id": "The call's id, which the block with its result repeats.",
    "ToolUseBlock.name": "The function's name.",
    "ToolUseBlock.input": "The arguments.",
    "ToolResultBlock.type": "The result of a call.",
    "ToolResultBlock.tool_use_id": "The id of the call whose result this is.",
    "ToolResultBlock.content": "The result's text, or its blocks.",
    "FunctionTool.type": "A function.",
    "FunctionTool.name": "The function's name.",
    "FunctionTool.description": "What the function does, for the model.",
    "FunctionTool.parameters": "JSON schema of the arguments, an object. If absent: no arguments.",
    "CustomTool.type": "A tool whose input is one text.",
    "CustomTool.name": "The tool's name.",
    "CustomTool.description": "What the tool does, for the model.",
    "CustomTool.format": "Form of the input. If absent: any text.",
    "CustomFormat.type": "`text` (any), or `grammar` with a regular expression.",
    "CustomFormat.syntax": "`regex`; `lark` is answered with 400.",
    "CustomFormat.definition": "The regular expression that matches the whole input.",
    "NamespaceTool.type": "Tools under a common name.",
    "NamespaceTool.name": "The common name; functions become NAME__FUNCTION.",
    "NamespaceTool.description": "What the tools have in common. It has no effect.",
    "NamespaceTool.tools": "The tools of this name.",
    "HostedTool.type": "The kind of a tool that only OpenAI's servers run; it is left out.",
    "NamedTool.type": "The kind of the tool.",
    "NamedTool.name": "The tool's name.",
    "ResponsesToolChoice.type": "`none`, `auto`, `required`, `function`, `custom` or `allowed_tools`.",
    "ResponsesToolChoice.name": "The tool that must be called. For the types `function` and `custom`.",
    "ResponsesToolChoice.mode": "`auto`: the model may call one; `required`: it must. For the type `allowed_tools`.",
    "ResponsesToolChoice.tools": "The tools among which the model chooses. For the type `allowed_tools`.",
    "namespace": "The namespace that the tool belongs to.",
    "FunctionCallItem.type": "A function call of the assistant.",
    "FunctionCallItem.name": "The function's name.",
    "FunctionCallItem.arguments": "The arguments, as the text of a JSON object.",
    "CustomCallItem.type": "A call of a custom tool.",
    "CustomCallItem.name": "The tool's name.",
    "CustomCallItem.input": "The input that the assistant wrote.",
    "CallOutputItem.type": "The result of a call.",
    "CallOutputItem.output": "The result's text, or its parts.",
    "call_id": "The call's id, which the item with its result repeats.",
}

OTHER_ENDPOINTS: Mapping[str, str] = {
    "DetokenizeRequest.tokens": "The token ids.",
    "EmbeddingRequest.input": "The text to embed, a list of token ids, or a list of either.",
    "encoding_format": "`float`: numbers; `base64`: little-endian float32, which is shorter.",
    "dimensions": "Keep this many of the first numbers and scale them to length 1 again. If absent: all.",
    "query": "The text that documents are compared with.",
    "documents": "The documents: texts, or objects with a `text`.",
    "Document.text": "The document's text.",
    "top_n": "Send only this many documents, the most similar ones. If absent: all.",
    "return_documents": "Send the documents' texts back.",
    "text_1": "One text, or as many as `text_2`.",
    "text_2": "The texts that are compared with `text_1`.",
    "input_file_id": "The id of an uploaded file with `purpose` batch.",
    "endpoint": "The URL that all lines of the file have.",
    "completion_window": "`24h`: after that time, lines without an answer end as expired.",
    "CreateBatchRequest.metadata": "Pairs of texts that the batch's object repeats.",
    "lora_name": "The name under which requests choose the adapter, by `model`.",
    "lora_path": "The adapter's directory on the server's machine.",
    "UploadForm.file": "The file: a request as JSON on each line.",
    "UploadForm.purpose": "`batch` is the only purpose.",
}

REQUEST_FIELDS: Mapping[str, str] = {
    **SAMPLING,
    **LENGTH_AND_END,
    **REPLY,
    **SCHEDULING_AND_EXPERTS,
    **FORMATS,
    **PROMPTS,
    **TOOLS,
    **OTHER_ENDPOINTS,
}
