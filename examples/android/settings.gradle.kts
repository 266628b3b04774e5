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
    versionCatalogs {
        create("libs") { from(files("../../runtimes/android/gradle/libs.versions.toml")) }
    }
}
rootProject.name = "dermedge-example"
include(":app")
includeBuild("../../runtimes/android")
