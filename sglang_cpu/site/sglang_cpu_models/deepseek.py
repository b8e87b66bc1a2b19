"""DeepSeek-V3 as SGLang has it."""

from sglang.srt.models.deepseek_v2 import DeepseekV3ForCausalLM

EntryClass = DeepseekV3ForCausalLM
