"""A sentence for each field of the replies and each parameter in a URL, for the API's description.

Keys are the name of a field, or PARENT.FIELD for one inside the field PARENT.
"""

from collections.abc import Mapping

GENERATED: Mapping[str, str] = {
    "created": "Time of the reply, in seconds since 1970.",
    "created_at": "Time of creation, in seconds since 1970.",
    "system_fingerprint": "Name of the numerics and the weights. Equal requests with equal fingerprints and seeds give "
    "equal tokens where the backend promises it.",
    "seed": "The seed in use; send it again to get the same answer.",
    "usage": "Token counts of the request.",
    "prompt_tokens": "Tokens of the prompts; each prompt counts once, whatever `n` is.",
    "completion_tokens": "Tokens that were generated, over all answers.",
    "total_tokens": "The sum of both.",
    "prompt_tokens_details": "What is known about the prompt's tokens.",
    "cached_tokens": "Prompt tokens that were found in the prefix cache and not computed again.",
    "choices": "The answers: `n` to each prompt, in the order of the prompts.",
    "choices.index": "Number of the answer, from 0.",
    "text": "The generated text.",
    "message": "The generated message.",
    "message.role": "Always the assistant.",
    "message.content": "The generated text; null if there are only calls.",
    "refusal": "Always null.",
    "logprobs": "Log probabilities of the tokens, if the request asked for them.",
    "finish_reason": "Why the answer ended: `stop` (end token or stop text), `length` (the limit on tokens) or "
    "`tool_calls`. null in a stream before the end.",
    "stop_reason": "The stop text or stop token that ended the answer, else null.",
}

OTHER_APIS: Mapping[str, str] = {
    "output": "The items of the answer.",
    "output.id": "Id of the item.",
    "output.type": "Text of the assistant, or a function call.",
    "output.status": "Whether the item is complete.",
    "role": "Always the assistant.",
    "content": "The blocks of the answer.",
    "content.type": "Text, or a tool call.",
    "stop_sequence": "The text of `stop_sequences` that ended the answer, else null.",
    "input_tokens": "Tokens of the prompt.",
    "output_tokens": "Tokens that were generated.",
    "cache_read_input_tokens": "Prompt tokens that were found in the prefix cache.",
    "data": "The entries.",
    "data.index": "Number of the text, from 0.",
    "embedding": "The vector, of length 1: numbers, or base64 if the request asked for it.",
    "score": "Cosine of the two embeddings, from -1 to 1.",
    "results": "The documents, the most similar first.",
    "results.index": "Number of the document in the request, from 0.",
    "relevance_score": "Cosine of the query's and the document's embeddings, from -1 to 1.",
}

FILES: Mapping[str, str] = {
    "bytes": "Size in bytes.",
    "filename": "Name under which the file was uploaded.",
    "purpose": "`batch` for requests, `batch_output` for answers.",
    "deleted": "Always true.",
    "endpoint": "The URL that all lines of the batch have.",
    "input_file_id": "Id of the file with the requests.",
    "output_file_id": "Id of the file with the answers; null while there is none.",
    "error_file_id": "Id of the file with the errors; null while there is none.",
    "request_counts": "How far the batch is.",
    "request_counts.total": "Lines of the file.",
    "request_counts.completed": "Lines with an answer.",
    "request_counts.failed": "Lines with an error.",
    "first_id": "Id of the first entry; null if there is none.",
    "last_id": "Id of the last entry, the `after` of the next page; null if there is none.",
    "has_more": "Whether there is a next page.",
}

SERVER: Mapping[str, str] = {
    "owned_by": "Always smoe.",
    "root": "The model's main name.",
    "parent": "Of a LoRA adapter, the main name of the model that it changes; null for the model itself.",
    "max_model_len": "Context length in tokens, prompt and answer together; null while the model loads.",
    "generation_defaults": "Values of sampling fields that a request omits; null while the model loads.",
    "tokens": "The token ids.",
    "count": "Number of token ids.",
    "prompt": "The text.",
    "bos_token": "Token in front of a text; null if there is none.",
    "eos_token": "Token that ends an answer; null if there is none.",
    "chat_template": "The Jinja template in use; null if the server formats conversations itself.",
    "vocab_size": "Number of token ids.",
    "since": "Start of the counts, in seconds since 1970.",
    "layers": "An entry for each layer.",
    "layer": "Number of the layer, from 0.",
    "layers.tokens": "Tokens that each expert computed.",
    "version": "Version of the server.",
    "server_load": "Requests that run or wait.",
    "running": "Requests that the engine is running; in /load/recent per interval.",
    "waiting": "Requests that wait for the engine; in /load/recent per interval.",
    "interval_s": "Seconds of each interval. Each list has one number per interval, the newest last; null: no figure.",
    "prompt_tokens_per_s": "Prompt tokens per second that steps computed.",
    "generated_tokens_per_s": "Generated tokens per second.",
    "accepted_tokens_per_s": "Of the generated tokens per second, those that were guessed (--speculation).",
    "kv_usage": "Share of the KV cache in use, 0 to 1.",
    "step_ms": "Mean duration of a step in milliseconds.",
    "ttft_p50_ms": "Median time to the first token in milliseconds.",
    "ttft_p99_ms": "Time to the first token that 99 % of the requests stayed below, in milliseconds.",
    "error": "What is wrong.",
    "error.message": "A sentence for people.",
    "error.type": "Class of the error; `code` is more exact.",
    "error.param": "The field that is wrong; null if it is no single field.",
    "error.code": "Name of the error for programs.",
}

SHARED: Mapping[str, str] = {
    "id": "Id of this object.",
    "object": "Kind of this object.",
    "type": "Kind of this object.",
    "model": "The served model's name.",
    "status": "State of this object.",
}

OLLAMA: Mapping[str, str] = {
    "models": "An entry for each name.",
    "name": "The served name.",
    "modified_at": "Start of the server.",
    "size": "Bytes of the weights; in /api/ps with the KV cache.",
    "digest": "A digest of the fingerprint, which names the numerics and the weights.",
    "details": "What kind of model it is.",
    "parent_model": "Always empty.",
    "format": "Always gguf.",
    "family": "Always llama, as GGUF files of Mixtral name their architecture.",
    "families": "The same in a list.",
    "parameter_size": "Number of parameters, such as 46.7B.",
    "quantization_level": "Format of the weights.",
    "template": "The Jinja template in use.",
    "model_info": "Numbers of the network, under the names of GGUF files.",
    "capabilities": "What the model can be used for.",
    "done": "Whether this is the last part. It has counts of tokens, and durations in nanoseconds.",
    "response": "The generated text.",
    "embeddings": "A vector of length 1 for each text.",
    "total_duration": "Time from the request's arrival to the reply, in nanoseconds.",
    "prompt_eval_count": "Tokens of the texts.",
}

REPLY_FIELDS: Mapping[str, str] = {**GENERATED, **OTHER_APIS, **FILES, **SERVER, **OLLAMA, **SHARED}

PARAMETERS: Mapping[str, str] = {
    "model_id": "A served name.",
    "file_id": "Id of the file.",
    "batch_id": "Id of the batch.",
    "limit": "Largest number of entries.",
    "after": "Id of the entry before the first one; the last page's `last_id`.",
    "order": "`desc`, the newest first, or `asc`. If absent: `desc`.",
    "purpose": "Only files of this purpose. If absent: all.",
    "interval": "Seconds of each interval.",
    "window": "Count the last so many seconds. If absent: since the start or the last reset.",
    "name": "Path of the file.",
}
