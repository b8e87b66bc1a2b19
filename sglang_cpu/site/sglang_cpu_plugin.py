"""An SGLang plugin (entry-point group sglang.srt.plugins): DeepSeek on the torch_native attention backend."""


def register() -> None:
    """Let torch_native take the absorbed MLA path always.

    No handler is registered for it, so SGLang takes triton's, which prefills with MHA; torch_native reads keys
    from the latent pool, whose width is another, and the first prefill dies.
    """
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    AttentionBackendRegistry.register("torch_native", lambda attn, forward_batch: AttnForwardMethod.MLA)
