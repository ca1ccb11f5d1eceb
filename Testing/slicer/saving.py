"""A scene to files."""

from __future__ import annotations

from pathlib import Path


def save_scene(scene, file: Path) -> None:
    """As Slicer does: each storable node to a file of its own, then the scene."""
    for i in range(scene.GetNumberOfNodesByClass("vtkMRMLStorableNode")):
        node = scene.GetNthNodeByClass(i, "vtkMRMLStorableNode")
        node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        if storage is None or not node.GetSaveWithScene():
            continue
        storage.SetFileName(str(file.parent / f"{i}.{storage.GetDefaultWriteFileExtension()}"))
        storage.WriteData(node)
    scene.SetURL(str(file))
    assert scene.Commit()
