"""Values beside the name of a service: `twilio = "…"`, for keys that have no form of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from . import drawn
from .scan import ALNUM, Label, Scan, Span, compiled

_NAMES: Final = (
    r"(?:"
    r"adafruit|adobe|airtable|algolia|alibaba|amplitude|asana|atlassian|auth0|azure"
    r"|beamer|bitbucket|bitly|bittrex|braintree|brevo|bugsnag|buildkite|circleci"
    r"|clickup|cloudflare|cloudinary|cockroach|codecov|coinbase|confluent|consul"
    r"|contentful|databricks|datadog|deepl|digitalocean|discord|docusign|drone ?ci|dropbox"
    r"|duffel|dynatrace|easypost|elastic|etsy|facebook|fastly|figma|finicity|finnhub"
    r"|firebase|flickr|flutterwave|freshbooks|freshdesk|gitea|github|gitlab|gitter"
    r"|gocardless|grafana|harness|heroku|honeycomb|hubspot|huggingface|infura|intercom"
    r"|jenkins|jfrog|artifactory|jira|kraken|kucoin|launchdarkly|linear|linkedin|lob|looker"
    r"|mailchimp|mailgun|mailjet|mandrill|mapbox|mattermost|maxmind|messagebird"
    r"|microsoft_?teams|mixpanel|mongodb|netlify|new[_ -]?relic|ngrok|notion|npm"
    r"|nytimes|okta|onelogin|openai|opsgenie"
    r"|pagerduty|paypal|pinecone|plaid|planetscale|postman|privateai|pulumi|pusher"
    r"|quickbooks|rapidapi|razorpay|readme|revenuecat|rollbar|salesforce|sauce ?labs"
    r"|segment|sendbird|sendgrid"
    r"|sendinblue|sentry|shippo|shodan|shopify|sidekiq|slack|snyk|sonar\w{0,4}|spotify"
    r"|square(?:space)?|stripe|sumo(?:logic)?|supabase|surge|tailscale|telegram"
    r"|terraform|travis|trello|twilio|twitch"
    r"|twitter|typeform|unsplash|vercel|virustotal|wakatime|weather(?:api)?|webex"
    r"|wordpress|yandex|youtube|zapier|zendesk|zoom"
    r")"
)
_SIGN: Final = r"[\w.-]{0,24}\\{0,2}[\"'`]?[\])]?\s{0,3}(?:=>|:=|[:=])\s{0,3}\\{0,2}"
# Quoted, for a bare value beside a name is as often a host or a version.
_QUOTED = compiled(rf"(?i){_NAMES}{_SIGN}[\"'`]([\w=+/%.-]{{14,256}})")
_BEFORE = compiled(rf"(?i){_NAMES}{_SIGN}[\"'`]?$")
SHAPES: Final = (_QUOTED,)


def find(scan: Scan) -> Iterator[Span]:
    """Yield the quoted ones."""
    for match in scan.matches(_QUOTED):
        value = match.group(1)
        if scan.joined_before(match.start(), ALNUM) or drawn.exemplary(value):
            continue
        if drawn.UUID.match(value) or (drawn.is_drawn(value) and drawn.switches(value) >= 3):
            yield scan.span(match, Label.API_KEY, "value of a service's name", 1)


def named(text: bytes, start: int) -> bool:
    """True if the value at `start` stands beside the name of a service."""
    return _BEFORE.search(text[max(0, start - 64) : start]) is not None
