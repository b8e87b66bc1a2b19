"""SGLang plugins (entry-point group sglang.srt.plugins): DeepSeek on torch_native, KV caches in host memory."""


def register() -> None:
    """Let torch_native take the absorbed MLA path always.

    No handler is registered for it, so SGLang takes triton's, which prefills with MHA; torch_native reads keys
    from the latent pool, whose width is another, and the first prefill dies.
    """
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    AttentionBackendRegistry.register("torch_native", lambda attn, forward_batch: AttnForwardMethod.MLA)


def register_transfer() -> None:
    """Let Mooncake's sender take the places of a KV cache as numbers.

    It says that it takes tensors that are on their way from the GPU; SGLang then records a CUDA event for them, and a
    prefill server that became ready dies of its first request. The class is known once SGLang has looked it up: before
    that its module would load Mooncake in every server.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("sglang.srt.disaggregation.utils.get_kv_class", _takes_numbers, HookType.AFTER)


def _takes_numbers(looked_up: type, *_: object, **__: object) -> None:
    if looked_up.__name__ == "MooncakeKVSender":
        looked_up.supports_host_tensor_indices = False  # type: ignore[attr-defined]
