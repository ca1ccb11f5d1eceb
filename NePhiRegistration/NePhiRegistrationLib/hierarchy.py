"""Folders of Slicer's subject hierarchy, as in its module Data."""

from __future__ import annotations

import slicer

from .scene import remove

_FOLDER = "NePhi.Folder"  # attribute of folders that were made here


def put_into_folder(name: str, members: list, beside) -> None:
    """Move nodes into a new folder, inside the folder of ``beside``."""
    hierarchy, parent = _folder_of(beside)
    folder = hierarchy.CreateFolderItem(parent, hierarchy.GenerateUniqueItemName(name))
    hierarchy.SetItemAttribute(folder, _FOLDER, "1")
    _put(hierarchy, members, folder)


def put_beside(members: list, neighbour) -> None:
    """Nodes into the folder that ``neighbour`` is in."""
    hierarchy, folder = _folder_of(neighbour)
    _put(hierarchy, members, folder)


def remove_with_folder(members: list) -> None:
    """Remove nodes from the scene, and the folder that was made for the first if it is empty then."""
    hierarchy, folder = _folder_of(members[0])
    for node in reversed(members):
        remove(node.GetScene(), node)
        if item := hierarchy.GetItemByDataNode(node):  # without the application it stays
            hierarchy.RemoveItem(item, False, False)
    if hierarchy.HasItemAttribute(folder, _FOLDER) and not hierarchy.GetNumberOfItemChildren(folder):
        hierarchy.RemoveItem(folder)


def _folder_of(node) -> tuple:
    """The scene's hierarchy, and the item of the folder in it that the node is in."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    item = hierarchy.GetItemByDataNode(node)
    return hierarchy, (hierarchy.GetItemParent(item) if item else 0) or hierarchy.GetSceneItemID()


def _put(hierarchy, members: list, folder: int) -> None:
    for node in members:
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, folder)
        else:
            hierarchy.CreateItem(folder, node)
