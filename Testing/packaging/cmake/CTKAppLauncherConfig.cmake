# Stands in for CTK's application launcher: there is no application to launch.
function(ctkAppLauncherConfigureForExecutable)
endfunction()
