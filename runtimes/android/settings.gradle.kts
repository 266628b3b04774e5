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
rootProject.name = "dermedge"
include(":litert-stubs", ":core", ":android")
