"""The five steps that turn a cluster's sessions into an adapter: preprocess, sft, dpo, evaluate, package."""
