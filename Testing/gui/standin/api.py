"""The functions of Slicer's Python that the module calls, with Slicer's own signatures and refusals.

They must stay as strict as Slicer's: ``test_signatures.py`` compares every one with a Slicer checkout.
"""

from __future__ import annotations

import types

import slicer


def errorDisplay(text, windowTitle=None, parent=None, standardButtons=None, **kwargs):
    slicer.app.say(text)


def infoDisplay(text, windowTitle=None, parent=None, standardButtons=None, **kwargs):
    slicer.app.say(text)


def warningDisplay(text, windowTitle=None, parent=None, standardButtons=None, **kwargs):
    slicer.app.say(text)


def confirmOkCancelDisplay(text, windowTitle=None, parent=None, **kwargs):
    return slicer.app.say(text)


def delayDisplay(message, autoCloseMsec=1000, parent=None, **kwargs):
    slicer.app.say(message)


def showStatusMessage(message, duration=0):
    slicer.app.say(message)


def tr(text):
    return text


def translate(context, text):
    return text


def runSync(module, node=None, parameters=None, delete_temporary_files=True, update_display=True, hide_window=True):
    raise RuntimeError("there are no command-line modules")


class SampleDataSource:
    """One name in Sample Data. One entry of every list for each address, or it raises; without an address TypeError."""

    def __init__(
        self,
        sampleName=None,
        sampleDescription=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        checksums=None,
        loadFiles=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFileProperties=None,
        loadFileType=None,
    ):
        lists = [fileNames, nodeNames, checksums, loadFiles, loadFileTypes]
        if isinstance(uris, str):
            uris, lists = [uris], [[entry] for entry in lists]
        elif isinstance(uris, (list, tuple)):
            lists[1:] = [[entry] * len(uris) if entry is None else entry for entry in lists[1:]]
        lengths = {len(entry) for entry in (uris, *lists)}
        if len(lengths) != 1:
            raise ValueError("All fields of sample data source must have the same length")
        self.sampleName, self.customDownloader = sampleName, customDownloader
        self.thumbnailFileName = thumbnailFileName
        self.uris, self.fileNames, self.nodeNames, self.checksums, self.loadFiles, self.loadFileTypes = uris, *lists


class SampleDataLogic:
    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties={},  # noqa: B006 as Slicer's
        checksums=None,
        loadFileType=None,
    ):
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        sources = slicer.modules.sampleDataSources.setdefault(category, [])
        sources.append(
            SampleDataSource(
                sampleName=sampleName,
                uris=uris,
                fileNames=fileNames,
                nodeNames=nodeNames,
                customDownloader=customDownloader,
                thumbnailFileName=thumbnailFileName,
                loadFileTypes=loadFileTypes,
                loadFiles=loadFiles,
                loadFileProperties=loadFileProperties,
                checksums=checksums,
            )
        )


def make_module(name: str, *members) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update({member.__name__: member for member in members})
    return module


UTIL = (errorDisplay, infoDisplay, warningDisplay, confirmOkCancelDisplay, delayDisplay, showStatusMessage)
MODULES = {
    "slicer.i18n": (tr, translate),
    "slicer.cli": (runSync,),
    "PyTorchUtils": (),  # only asked whether it is there
    "SampleData": (SampleDataSource, SampleDataLogic),
}
