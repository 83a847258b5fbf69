"""What a registry has under a name, without pulling it: Docker Engine API, DistributionInspect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from bulle.model.digest import Digest
from bulle.model.image import INDEX_MEDIA_TYPES, ImageConfig, Index, Manifest
from bulle.model.reference import Reference

if TYPE_CHECKING:
    from bulle.engine.images import Images


def distribution_document(images: Images, name: str) -> dict[str, object]:
    """The descriptor of what the registry has, and the platforms that it is for. Raises NotFound, RegistryFailure, AuthenticationFailed."""
    from bulle.registry.remote import fetch_blob, fetch_document

    reference = Reference.parse(name)
    with images.configured(None) as configuration:
        raw, media_type = fetch_document(reference, configuration)
        if media_type in INDEX_MEDIA_TYPES:
            platforms = [entry.platform for entry in Index.parse(raw).manifests if entry.platform is not None and entry.platform.os != "unknown"]
        else:
            config = b"".join(fetch_blob(reference.repository, Manifest.parse(raw).config, configuration))
            platforms = [ImageConfig.parse(config).platform]
    return {
        "Descriptor": {"mediaType": media_type, "digest": str(Digest.of(raw)), "size": len(raw)},
        "Platforms": [msgspec.to_builtins(platform) for platform in platforms],
    }
