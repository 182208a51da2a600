"""Names become versions, or an error that helps."""

from __future__ import annotations

import pytest

from mmserve.errors import ModelNotFound
from routing.core.table import DeploymentEntry, ModelEntry, RoutingTable, VersionEntry

TABLE = RoutingTable.build(
    revision=7,
    models=[ModelEntry(id="acme/chat", default="acme/chat@2"), ModelEntry(id="bare", default=None)],
    versions=[
        VersionEntry(served_id="acme/chat@1", model="acme/chat"),
        VersionEntry(served_id="acme/chat@2", model="acme/chat"),
        VersionEntry(served_id="bare@1", model="bare"),
    ],
    aliases={"acme/chat@canary": "acme/chat@1", "acme/chat@gone": "acme/chat@0"},
    deployments=[
        DeploymentEntry(id="chat-b", served_id="acme/chat@2"),
        DeploymentEntry(id="chat-a", served_id="acme/chat@2"),
    ],
)


@pytest.mark.parametrize(
    ("asked", "served"),
    [("acme/chat", "acme/chat@2"), ("acme/chat@1", "acme/chat@1"), ("acme/chat@canary", "acme/chat@1")],
)
def test_a_name_a_version_and_an_alias_resolve(asked, served):
    assert TABLE.resolve(asked).served_id == served


def test_deployments_hang_on_their_version_in_order():
    assert TABLE.resolve("acme/chat").deployments == ("chat-a", "chat-b")


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(ModelNotFound, match="Did you mean 'acme/chat'") as error:
        TABLE.resolve("acme/chta")
    assert error.value.param == "model"


def test_an_absurdly_long_name_is_not_echoed_whole():
    with pytest.raises(ModelNotFound) as error:
        TABLE.resolve("x" * 100_000)
    assert len(error.value.message) < 400


def test_a_model_without_a_default_names_its_versions():
    with pytest.raises(ModelNotFound, match="bare@1"):
        TABLE.resolve("bare")


def test_an_alias_of_a_version_that_is_gone_says_so():
    with pytest.raises(ModelNotFound, match="gone"):
        TABLE.resolve("acme/chat@gone")
