// The Gradle build of Android apps. Tests run in the Maven build, which needs no Android SDK.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}
dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}
rootProject.name = "dermedge-parent"
// The projects have the names of the Maven build, by which an app that includes this build
// finds them.
for (folder in listOf("litert-stubs", "core", "android")) {
    include(":dermedge-$folder")
    project(":dermedge-$folder").projectDir = file(folder)
}
