"""Functions and classes of other languages, and values that they read: `ray.cross_language`."""

from ..cross_language import CrossLanguageError, JsActorClass, JsFunction, Neutral, js_actor_class, js_function

__all__ = ["CrossLanguageError", "JsActorClass", "JsFunction", "Neutral", "js_actor_class", "js_function"]
