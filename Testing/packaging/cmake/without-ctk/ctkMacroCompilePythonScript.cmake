# Stands in for CTK's macro where no CTK checkout is at hand: copies the listed files and installs the folder.
macro(ctkMacroCompilePythonScript)
  cmake_parse_arguments(MY "NO_INSTALL_SUBDIR;GLOBAL_TARGET" "TARGET_NAME;SOURCE_DIR;DESTINATION_DIR;INSTALL_DIR"
    "SCRIPTS;RESOURCES" ${ARGN})
  set(_copied)
  foreach(_file IN LISTS MY_SCRIPTS MY_RESOURCES)
    set(_source "${CMAKE_CURRENT_SOURCE_DIR}/${_file}")
    set(_copy "${MY_DESTINATION_DIR}/${_file}")
    add_custom_command(OUTPUT "${_copy}" DEPENDS "${_source}"
      COMMAND ${CMAKE_COMMAND} -E copy "${_source}" "${_copy}")
    list(APPEND _copied "${_copy}")
  endforeach()
  add_custom_target(${MY_TARGET_NAME}PythonFiles ALL DEPENDS ${_copied})
  install(DIRECTORY "${MY_DESTINATION_DIR}/" DESTINATION "${MY_INSTALL_DIR}" COMPONENT RuntimeLibraries)
endmacro()
