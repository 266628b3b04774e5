// Written by `dermedge embed` for {{name}}. Not compiled by dermedge.
import CoreML
import CoreVideo
import Foundation

/// The model {{name}} of a bundle for iOS.
enum Embedded{{symbol}} {
    /// SHA-256 that identifies the bundle.
    static let id = "{{id}}"
    static let intendedUse = {{use}}
    /// Width and height of the model's input in pixels.
    static let size = {{size}}
    /// Outputs of the model and the labels of each, in the order of the output's values.
    static let tasks: [(name: String, labels: [(id: String, name: String)])] = [
        {{tasks}}
    ]

    /// Compile the model on this device, or reuse what was compiled before, and load it.
    static func load(
        configuration: MLModelConfiguration = MLModelConfiguration()
    ) async throws -> MLModel {
        guard let bundle = Foundation.Bundle.main.url(
            forResource: "{{name}}", withExtension: "dermedge"
        ) else {
            throw CocoaError(.fileNoSuchFile)
        }
        let files = FileManager.default
        let caches = try files.url(
            for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let kept = caches.appendingPathComponent("\(id).mlmodelc")
        if !files.fileExists(atPath: kept.path) {
            let package = bundle.appendingPathComponent("{{artifact}}")
            let compiled = try await MLModel.compileModel(at: package)
            try files.moveItem(at: compiled, to: kept)
        }
        return try await MLModel.load(contentsOf: kept, configuration: configuration)
    }

    /// Return the raw outputs by task. The image has `size` x `size` pixels and was
    /// resized as `runtimes/README.md` defines; scaling by the system gives other results.
    static func outputs(of image: CVPixelBuffer, from model: MLModel) throws
        -> [String: MLMultiArray]
    {
        let input = try MLDictionaryFeatureProvider(
            dictionary: ["image": MLFeatureValue(pixelBuffer: image)])
        let output = try model.prediction(from: input)
        return tasks.reduce(into: [:]) { result, task in
            result[task.name] = output.featureValue(for: task.name)?.multiArrayValue
        }
    }
}
