"""The first day: ten domains from written descriptions, until the data shows its own.

A starter is the chassis with a system prompt. It is scaffolding: the lifecycle deprecates starters
once leaves that grew from sessions take the traffic.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from leaves.model import LeafId, Stage, unit

from .ports import Encoder
from .table import Entry

LEVEL = 1  # broad, and asked only when no leaf that grew from data passes its gate
# The specification's 0.20 would refuse two thirds of 7,000 public prompts about programming, most
# of them on topics beside the ten; this refuses 20 % of those, and 47 % of 9,000 on other things.
FLOOR = 0.12


@dataclass(frozen=True, slots=True)
class Starter:
    """One domain of the first day, described by asks that belong to it.

    Their mean is its centroid. One long description would be far from any real prompt: of public
    ones about programming, 42 % are below 0.1 of the nearest, and 11 % with asks.
    """

    key: str
    asks: tuple[str, ...]
    system: str


def _starter(key: str, asks: tuple[str, ...], role: str) -> Starter:
    return Starter(key, asks, f"You are {role} Answer precisely, with working examples.")


STARTERS = (
    _starter(
        "python",
        (
            "How do I do this in Python?",
            "Write a Python function",
            "Python class raises an exception",
            "asyncio in Python",
            "install a Python package with pip",
            "test Python code with pytest",
        ),
        "an expert Python developer.",
    ),
    _starter(
        "react",
        (
            "React component does not re-render",
            "useState and useEffect hooks in React",
            "style a web page with CSS and HTML",
            "Next.js page routing",
            "JavaScript form in the browser",
        ),
        "an expert front-end developer who works with React.",
    ),
    _starter(
        "postgresql",
        (
            "Write an SQL query with a join",
            "PostgreSQL index on a table",
            "database schema migration",
            "select rows from a table where a column matches",
            "slow database query",
        ),
        "an expert in PostgreSQL and SQL.",
    ),
    _starter(
        "devops",
        (
            "Linux shell command to find files",
            "Dockerfile for a container",
            "Kubernetes deployment is failing",
            "set up a CI pipeline",
            "git commit and push to a repository",
            "configure the nginx or Apache server",
        ),
        "an expert DevOps engineer.",
    ),
    _starter(
        "rust",
        (
            "Rust borrow checker error",
            "lifetimes and ownership in Rust",
            "implement a trait for a struct in Rust",
            "cargo build in Rust",
            "async Rust with tokio",
        ),
        "an expert Rust developer.",
    ),
    _starter(
        "typescript",
        (
            "TypeScript type error",
            "generic interface in TypeScript",
            "Node.js server with Express",
            "JavaScript promise and await",
            "npm package module import",
        ),
        "an expert TypeScript developer.",
    ),
    _starter(
        "data-science",
        (
            "train a machine learning model",
            "plot a matrix of data",
            "pandas data frame",
            "statistics of a data set",
            "neural network in PyTorch",
        ),
        "an expert data scientist.",
    ),
    _starter(
        "security",
        (
            "is this code vulnerable to an attack",
            "encrypt a password",
            "user login and authentication",
            "SSL certificate and TLS",
            "permissions and access control",
        ),
        "an expert in software security, who helps to defend systems.",
    ),
    _starter(
        "mobile",
        (
            "Android app activity",
            "iOS app in Swift",
            "publish an app in the app store",
            "Flutter mobile user interface",
            "push notifications on the phone",
        ),
        "an expert mobile developer.",
    ),
    _starter(
        "system-design",
        (
            "design a scalable system architecture",
            "microservices and message queues",
            "caching and load balancing",
            "which design pattern should the software use",
            "distributed system consistency",
        ),
        "an expert software architect.",
    ),
)


def starter_id(key: str) -> LeafId:
    """Return the id of a starter: the same on every node, and never that of an origin's leaf."""
    return LeafId(hashlib.sha256(b"groove/starter/1" + key.encode()).digest()[:16].hex())


def starter_entries(encoder: Encoder) -> list[Entry]:
    """Return the ten starters for a routing table, encoded by this node's encoder."""
    vectors = encoder.encode([ask for starter in STARTERS for ask in starter.asks])
    ends = np.cumsum([len(starter.asks) for starter in STARTERS])
    means = [part.mean(axis=0, dtype=np.float64) for part in np.split(vectors, ends[:-1])]
    centroids = unit(np.stack(means).astype(np.float32))
    return [
        Entry(
            starter_id(starter.key),
            f"{starter.key}-starter",
            LEVEL,
            Stage.SPROUT,
            centroid,
            system=starter.system,
            floor=FLOOR,
        )
        for starter, centroid in zip(STARTERS, centroids, strict=True)
    ]
