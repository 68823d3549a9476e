"""The plugins that come with the sidecar. They import `plugin_sdk` and nothing else of it, as a third party's would."""
