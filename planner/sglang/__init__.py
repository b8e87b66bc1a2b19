"""SGLang's language: flags, defaults and launch lines of every release. Knows no rule and no search."""
